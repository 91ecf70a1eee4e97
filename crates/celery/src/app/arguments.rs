//! From Celery's positional list and keyword object to one Rust type, by serde.
//!
//! | type | accepts |
//! | --- | --- |
//! | `()` | no arguments |
//! | a struct | positional arguments in the order of its fields, keyword arguments by name, or a mix, as a Python function does |
//! | a tuple | exactly its number of positional arguments |
//! | `Vec`, `serde_json::Value`, a map | all positional, or all keyword arguments |
//! | anything else (`String`, `u64`, an enum, …) | exactly one positional argument |

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};

use crate::wire::RawJson;

/// The arguments of one task, as they came: exact JSON texts.
#[derive(Debug, Clone, Default)]
pub struct Arguments {
    /// The positional ones.
    pub args: Vec<RawJson>,
    /// The keyword ones, in the order in which they came.
    pub kwargs: Vec<(String, RawJson)>,
}

impl Arguments {
    /// Reads them as `T`; the module's table says what fits.
    ///
    /// # Errors
    /// Says which argument is missing, unexpected or of the wrong type.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Mismatch> {
        T::deserialize(Reader { arguments: self })
    }

    fn only(&self) -> Result<&RawJson, Mismatch> {
        match (self.args.as_slice(), self.kwargs.as_slice()) {
            ([one], []) => Ok(one),
            (args, kwargs) => Err(Mismatch(format!(
                "takes one positional argument, but {} positional and {} keyword arguments were given",
                args.len(),
                kwargs.len()
            ))),
        }
    }

    fn no_keywords(&self) -> Result<(), Mismatch> {
        match self.kwargs.first() {
            None => Ok(()),
            Some((name, _)) => Err(Mismatch(format!("got an unexpected keyword argument '{name}'"))),
        }
    }
}

/// Arguments that don't fit the handler. Its text reads on after the task's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch(pub(crate) String);

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mismatch {}

impl de::Error for Mismatch {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self(format!("is missing a required argument: '{field}'"))
    }

    fn unknown_field(field: &str, _expected: &'static [&'static str]) -> Self {
        Self(format!("got an unexpected keyword argument '{field}'"))
    }
}

/// Reads one JSON text where serde asks for it.
struct Text<'de> {
    text: &'de RawJson,
    name: Name<'de>,
}

/// How an error calls the argument.
#[derive(Clone, Copy)]
enum Name<'a> {
    Position(usize),
    Keyword(&'a str),
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Position(index) => write!(f, "positional argument {}", index + 1),
            Self::Keyword(name) => write!(f, "argument '{name}'"),
        }
    }
}

impl<'de> Text<'de> {
    fn seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Mismatch> {
        let mut deserializer = serde_json::Deserializer::from_str(self.text.as_str());
        let name = self.name;
        seed.deserialize(&mut deserializer).map_err(|error| Mismatch(format!("got a wrong {name}: {error}")))
    }
}

struct Reader<'de> {
    arguments: &'de Arguments,
}

/// Forwards what reads exactly one value to the only argument.
macro_rules! one {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
            let text = self.arguments.only()?.as_str();
            let mut deserializer = serde_json::Deserializer::from_str(text);
            (&mut deserializer)
                .$method(visitor)
                .map_err(|error| Mismatch(format!("got a wrong positional argument 1: {error}")))
        }
    )*};
}

impl<'de> Deserializer<'de> for Reader<'de> {
    type Error = Mismatch;

    one! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64 deserialize_char deserialize_str deserialize_string
        deserialize_bytes deserialize_byte_buf deserialize_option deserialize_identifier
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        if self.arguments.kwargs.is_empty() && !self.arguments.args.is_empty() {
            self.deserialize_seq(visitor)
        } else {
            self.deserialize_map(visitor)
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        visitor.visit_unit()
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.arguments.no_keywords()?;
        match self.arguments.args.len() {
            0 => visitor.visit_unit(),
            given => Err(Mismatch(format!("takes no arguments, but {given} were given"))),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.arguments.no_keywords()?;
        let mut positions = Positions { texts: &self.arguments.args, next: 0 };
        let value = visitor.visit_seq(&mut positions)?;
        match self.arguments.args.len() {
            given if given > positions.next => Err(Mismatch(format!(
                "takes {} positional arguments, but {given} were given",
                positions.next
            ))),
            _ => Ok(value),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Mismatch> {
        match self.arguments.args.len() {
            given if given != len => {
                self.arguments.no_keywords()?;
                Err(Mismatch(format!("takes {len} positional arguments, but {given} were given")))
            }
            _ => self.deserialize_seq(visitor),
        }
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        self.deserialize_tuple(len, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.arguments.args.len() {
            0 => visitor.visit_map(Fields { arguments: self.arguments, fields: &[], next: 0 }),
            given => {
                Err(Mismatch(format!("takes keyword arguments only, but {given} positional ones were given")))
            }
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        let given = self.arguments.args.len();
        if given > fields.len() {
            let takes = fields.len();
            return Err(Mismatch(format!("takes {takes} positional arguments, but {given} were given")));
        }
        for (name, _) in &self.arguments.kwargs {
            if fields.iter().take(given).any(|field| field == name) {
                return Err(Mismatch(format!("got multiple values for argument '{name}'")));
            }
            if !fields.contains(&name.as_str()) {
                return Err(Mismatch(format!("got an unexpected keyword argument '{name}'")));
            }
        }
        visitor.visit_map(Fields { arguments: self.arguments, fields, next: 0 })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        let text = self.arguments.only()?.as_str();
        let mut deserializer = serde_json::Deserializer::from_str(text);
        (&mut deserializer)
            .deserialize_enum(name, variants, visitor)
            .map_err(|error| Mismatch(format!("got a wrong positional argument 1: {error}")))
    }
}

struct Positions<'a> {
    texts: &'a [RawJson],
    next: usize,
}

impl<'de> SeqAccess<'de> for &mut Positions<'de> {
    type Error = Mismatch;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Mismatch> {
        let Some(text) = self.texts.get(self.next) else { return Ok(None) };
        let name = Name::Position(self.next);
        self.next += 1;
        Text { text, name }.seed(seed).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.texts.len() - self.next)
    }
}

/// First the positional arguments under their fields' names, then the keyword ones.
struct Fields<'a> {
    arguments: &'a Arguments,
    fields: &'static [&'static str],
    next: usize,
}

impl<'a> Fields<'a> {
    fn entry(&self, index: usize) -> Option<(&'a str, &'a RawJson)> {
        let positional = self.arguments.args.len();
        if let Some(text) = self.arguments.args.get(index) {
            return self.fields.get(index).map(|field| (*field, text));
        }
        self.arguments.kwargs.get(index - positional).map(|(name, text)| (name.as_str(), text))
    }
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = Mismatch;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Mismatch> {
        let Some((name, _)) = self.entry(self.next) else { return Ok(None) };
        let name: StrDeserializer<'_, Mismatch> = name.into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Mismatch> {
        let Some((name, text)) = self.entry(self.next) else {
            return Err(Mismatch("got a keyword without a value".to_owned()));
        };
        self.next += 1;
        Text { text, name: Name::Keyword(name) }.seed(seed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Greeting {
        name: String,
        #[serde(default)]
        times: u32,
    }

    fn arguments(args: &str, kwargs: &str) -> Arguments {
        let args: Vec<serde_json::Value> = serde_json::from_str(args).unwrap();
        let kwargs: serde_json::Map<String, serde_json::Value> = serde_json::from_str(kwargs).unwrap();
        let raw = |value: &serde_json::Value| RawJson::of(value).unwrap();
        Arguments {
            args: args.iter().map(raw).collect(),
            kwargs: kwargs.iter().map(|(name, value)| (name.clone(), raw(value))).collect(),
        }
    }

    fn read<T: DeserializeOwned>(args: &str, kwargs: &str) -> Result<T, String> {
        arguments(args, kwargs).read().map_err(|mismatch| mismatch.to_string())
    }

    #[test]
    fn a_struct_takes_arguments_as_a_python_function_does() {
        let greeting = |name: &str, times| Ok(Greeting { name: name.to_owned(), times });
        let table = [
            (r#"["ann"]"#, "{}", greeting("ann", 0)),
            (r#"["ann", 2]"#, "{}", greeting("ann", 2)),
            (r#"["ann"]"#, r#"{"times": 2}"#, greeting("ann", 2)),
            ("[]", r#"{"times": 2, "name": "ann"}"#, greeting("ann", 2)),
            ("[]", "{}", Err("is missing a required argument: 'name'".to_owned())),
            (r#"["ann", 2, 3]"#, "{}", Err("takes 2 positional arguments, but 3 were given".to_owned())),
            (r#"["ann"]"#, r#"{"name": "bob"}"#, Err("got multiple values for argument 'name'".to_owned())),
            (r#"["ann"]"#, r#"{"tiems": 2}"#, Err("got an unexpected keyword argument 'tiems'".to_owned())),
        ];
        for (args, kwargs, expected) in table {
            assert_eq!(read::<Greeting>(args, kwargs), expected, "for {args} {kwargs}");
        }
        let wrong = read::<Greeting>(r#"["ann", -1]"#, "{}").unwrap_err();
        assert!(wrong.starts_with("got a wrong argument 'times': invalid value: integer `-1`"), "{wrong}");
    }

    #[test]
    fn tuples_units_scalars_and_collections() {
        assert_eq!(read("[]", "{}"), Ok(()));
        assert_eq!(read::<()>("[1]", "{}").unwrap_err(), "takes no arguments, but 1 were given");
        assert_eq!(read("[1, 2]", "{}"), Ok((1, 2)));
        assert_eq!(
            read::<(i32, i32)>("[1]", "{}").unwrap_err(),
            "takes 2 positional arguments, but 1 were given"
        );
        assert_eq!(
            read::<(i32, i32)>("[1]", r#"{"y": 2}"#).unwrap_err(),
            "got an unexpected keyword argument 'y'"
        );
        assert_eq!(read("[7]", "{}"), Ok(7_u64));
        assert_eq!(read(r#"["x"]"#, "{}"), Ok("x".to_owned()));
        assert_eq!(read("[null]", "{}"), Ok(None::<u64>));
        assert!(read::<u64>("[]", "{}").unwrap_err().starts_with("takes one positional argument"));
        assert_eq!(read("[1, 2, 3]", "{}"), Ok(vec![1, 2, 3]));
        assert_eq!(read("[]", r#"{"a": 1}"#), Ok(BTreeMap::from([("a".to_owned(), 1)])));
        assert_eq!(read("[1]", "{}"), Ok(serde_json::json!([1])));
        assert_eq!(read("[]", r#"{"a": [1]}"#), Ok(serde_json::json!({"a": [1]})));
    }
}
