//! Where a broker is. The password is inside and never comes out as text.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// What stands in a URL as a code: all but RFC 3986's unreserved characters.
const CODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The place of a broker and who we are there.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    scheme: Scheme,
    user: String,
    password: String,
    host: String,
    port: u16,
    vhost: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Embedded,
    Amqp,
    Amqps,
}

/// A text that isn't a broker's place. The text itself isn't shown, since it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a broker URL: {0}; write embedded, amqp://user@host:5672/vhost or amqps://user@host:5671/vhost")]
pub struct UrlError(String);

impl BrokerUrl {
    /// The broker inside this process.
    pub fn embedded() -> Self {
        let empty = String::new;
        Self {
            scheme: Scheme::Embedded,
            user: empty(),
            password: empty(),
            host: empty(),
            port: 0,
            vhost: empty(),
        }
    }

    /// Whether it is the one inside this process.
    pub fn is_embedded(&self) -> bool {
        self.scheme == Scheme::Embedded
    }

    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.scheme == Scheme::Amqps
    }

    /// The user; empty for the embedded broker.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The host.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The virtual host.
    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// The same place with another password.
    #[must_use]
    pub fn with_password(mut self, password: &str) -> Self {
        password.clone_into(&mut self.password);
        self
    }

    /// The same place as another user.
    #[must_use]
    pub fn with_user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.user);
        self
    }

    pub(super) fn password(&self) -> &str {
        &self.password
    }
}

impl FromStr for BrokerUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if matches!(text, "embedded" | "memory" | "memory://" | "memory:///") {
            return Ok(Self::embedded());
        }
        let url = url::Url::parse(text).map_err(|error| UrlError(error.to_string()))?;
        let scheme = match url.scheme() {
            "amqp" | "pyamqp" => Scheme::Amqp,
            "amqps" => Scheme::Amqps,
            other => return Err(UrlError(format!("scheme {other} is unknown"))),
        };
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let host = url
            .host_str()
            .filter(|host| !host.is_empty())
            .ok_or_else(|| UrlError("it names no host".into()))?;
        let or_guest = |text: &str| if text.is_empty() { "guest".to_owned() } else { decode(text) };
        let vhost = match url.path().strip_prefix('/') {
            None | Some("") => "/".to_owned(),
            Some(path) => decode(path),
        };
        Ok(Self {
            scheme,
            user: or_guest(url.username()),
            password: url.password().map_or_else(|| "guest".to_owned(), decode),
            host: host.trim_matches(['[', ']']).to_owned(),
            port: url.port().unwrap_or(if scheme == Scheme::Amqps { 5671 } else { 5672 }),
            vhost,
        })
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Embedded => return f.write_str("embedded"),
            Scheme::Amqp => "amqp",
            Scheme::Amqps => "amqps",
        };
        let coded = |text| utf8_percent_encode(text, CODED);
        // A host with colons is an IPv6 address.
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{}@{open}{}{close}:{}/", coded(&self.user), self.host, self.port)?;
        if self.vhost == "/" { Ok(()) } else { write!(f, "{}", coded(&self.vhost)) }
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BrokerUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_celery_reads_them() {
        let table = [
            ("amqp://u:p%40ss@h:1/v", "amqp://u@h:1/v", "p@ss"),
            ("amqp://h", "amqp://guest@h:5672/", "guest"),
            ("amqps://u@h//", "amqps://u@h:5671/", "guest"),
            ("amqp://u@h/%2f", "amqp://u@h:5672/", "guest"),
            ("amqp://us%40er:p@h/a%2fb%25", "amqp://us%40er@h:5672/a%2Fb%25", "p"),
            ("amqp://[::1]:1/my_v-1", "amqp://guest@[::1]:1/my_v-1", "guest"),
            ("memory://", "embedded", ""),
        ];
        for (text, shown, password) in table {
            let url: BrokerUrl = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((url.to_string().as_str(), url.password()), (shown, password), "{text}");
            let again: BrokerUrl = shown.parse().unwrap_or_else(|error| panic!("{shown}: {error}"));
            assert_eq!(again.with_password(password), url, "what is shown names the same place");
        }
    }

    #[test]
    fn no_password_comes_out() {
        let url: BrokerUrl = "amqp://u:secret@h/v".parse().unwrap();
        assert!(!format!("{url} {url:?}").contains("secret"));
        for text in ["http://u:secret@h", "amqp://", "u:secret@h", "amqp://u:secret@h:port"] {
            let error = text.parse::<BrokerUrl>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("secret"), "{text}");
        }
    }
}
