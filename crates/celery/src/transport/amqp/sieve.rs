//! Makes readable what the AMQP client can't parse, before it sees it. RabbitMQ carries any bytes as short strings, headers
//! of any depth and of the sender's frame size; the client ends its connection at a short string that isn't UTF-8 (Python
//! writes lone surrogates so), at a header that is larger than its own frames, and its stack at a table that is nested too
//! deep. The message would be delivered again, to the next connection, for ever.
//!
//! It knows frames, and nothing of connections.

use std::ops::Range;

use super::super::UNREADABLE_HEADER;

/// The deepest nesting of a header table: as deep as JSON may nest here. Celery's own have two levels.
const DEPTH_MAX: usize = 128;

/// The largest frame that is held back to be looked at whole. RabbitMQ's own limit is 131,072 bytes.
const HELD_MAX: usize = 1 << 20;

/// How much memory is kept when nothing is held.
const KEPT_MAX: usize = 1 << 16;

/// A frame's type, channel and size, in bytes; an end mark follows the payload (AMQP 0-9-1, 2.3.5).
const HEAD: usize = 7;

/// A content header's class, weight and body size come before its property flags.
const BEFORE_FLAGS: usize = 12;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// The bytes of one direction of one connection.
pub(super) struct Sieve {
    frame_max: usize,
    bytes: Vec<u8>,
    /// Up to here they were taken.
    taken: usize,
    /// Up to here they are readable.
    readable: usize,
    /// How many of the next are passed on as they are.
    passing: usize,
}

impl Sieve {
    /// For a client that takes frames of at most so many bytes.
    pub(super) fn new(frame_max: u32) -> Self {
        let frame_max = usize::try_from(frame_max).unwrap_or(usize::MAX);
        Self { frame_max, bytes: Vec::new(), taken: 0, readable: 0, passing: 0 }
    }

    /// Takes in what the broker sent.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        while self.readable < self.bytes.len() && self.step() {}
    }

    /// Hands out what is readable.
    pub(super) fn take(&mut self, out: &mut [u8]) -> usize {
        let count = out.len().min(self.readable - self.taken);
        out[..count].copy_from_slice(&self.bytes[self.taken..self.taken + count]);
        self.taken += count;
        if self.taken == self.readable {
            self.bytes.drain(..self.taken);
            (self.taken, self.readable) = (0, 0);
            if self.bytes.is_empty() {
                self.bytes.shrink_to(KEPT_MAX);
            }
        }
        count
    }

    /// Looks at the next bytes. False when that takes more of them.
    fn step(&mut self) -> bool {
        let left = &self.bytes[self.readable..];
        if self.passing > 0 {
            let passed = self.passing.min(left.len());
            self.passing -= passed;
            self.readable += passed;
            return true;
        }
        let &[kind, _, _, a, b, c, d, ..] = left else { return false };
        let whole = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let whole = whole.saturating_add(HEAD + 1);
        match kind {
            METHOD | HEADER if whole <= HELD_MAX => {
                if left.len() < whole {
                    return false;
                }
                let frame = self.readable..self.readable + whole;
                self.readable += if kind == METHOD { self.method(frame) } else { self.header(frame) };
            }
            METHOD | HEADER | BODY | HEARTBEAT => self.passing = whole,
            // These aren't frames (a broker of another version says so in text); the client has words for it.
            _ => self.passing = usize::MAX,
        }
        true
    }

    /// Gives the frame's size.
    fn method(&mut self, frame: Range<usize>) -> usize {
        let size = frame.len();
        let payload = &mut self.bytes[frame][HEAD..size - 1];
        let mut at = Place { bytes: payload, next: 0 };
        // One that is too short is the client's to refuse.
        let _short = at.method();
        size
    }

    /// Gives the frame's size, which is another when its table had to go.
    fn header(&mut self, frame: Range<usize>) -> usize {
        let size = frame.len();
        let payload = frame.start + HEAD..frame.end - 1;
        let mut at = Place { bytes: &mut self.bytes[payload.clone()], next: 0 };
        let Some((table, read)) = at.properties() else { return size };
        let why = match read {
            Ok(()) if size <= self.frame_max => return size,
            Ok(()) => format!("the header has {size} bytes, and this client takes {}", self.frame_max),
            Err(why) => why.to_owned(),
        };
        let note = note(&why);
        let new_size = size - table.len() + note.len();
        self.bytes.splice(payload.start + table.start..payload.start + table.end, note);
        let payload_size = u32::try_from(new_size - HEAD - 1).unwrap_or(u32::MAX);
        self.bytes[payload.start - 4..payload.start].copy_from_slice(&payload_size.to_be_bytes());
        new_size
    }
}

/// The table that stands for one that can't be read.
fn note(why: &str) -> Vec<u8> {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut entry = vec![u8::try_from(UNREADABLE_HEADER.len()).unwrap_or(u8::MAX)];
    entry.extend_from_slice(UNREADABLE_HEADER.as_bytes());
    entry.push(b'S');
    entry.extend_from_slice(&length(why.as_bytes()));
    entry.extend_from_slice(why.as_bytes());
    [&length(&entry)[..], &entry].concat()
}

/// A place in a payload.
struct Place<'a> {
    bytes: &'a mut [u8],
    next: usize,
}

/// What keeps a table from being read.
type Unreadable = &'static str;

const SHORT: Unreadable = "a header is longer than its table";

impl Place<'_> {
    fn skip(&mut self, count: usize) -> Option<Range<usize>> {
        let end = self.next.checked_add(count).filter(|end| *end <= self.bytes.len())?;
        let skipped = self.next..end;
        self.next = end;
        Some(skipped)
    }

    fn number<const SIZE: usize>(&mut self) -> Option<usize> {
        let bytes = self.skip(SIZE)?;
        Some(self.bytes[bytes].iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    fn short_string(&mut self) -> Option<()> {
        let size = self.number::<1>()?;
        let text = self.skip(size)?;
        make_utf8(&mut self.bytes[text]);
        Some(())
    }

    /// The methods by which a broker sends texts of others, or its own words, which it cuts without a look at letters.
    fn method(&mut self) -> Option<()> {
        let (before, between, texts) = match (self.number::<2>()?, self.number::<2>()?) {
            // basic.deliver: the consumer's tag, the delivery's and a bit, exchange and routing key.
            (60, 60) => (0, 9, 2),
            // connection.close, channel.close: a code and its words.
            (10, 50) | (20, 40) => (2, 0, 0),
            // connection.blocked: why.
            (10, 60) => (0, 0, 0),
            // basic.return: a code and its words, exchange and routing key.
            (60, 50) => (2, 0, 2),
            _ => return Some(()),
        };
        self.skip(before)?;
        self.short_string()?;
        self.skip(between)?;
        (0..texts).try_for_each(|_| self.short_string())
    }

    /// Goes through a content header. Gives the place of its table, and whether that can be read.
    fn properties(&mut self) -> Option<(Range<usize>, Result<(), Unreadable>)> {
        self.skip(BEFORE_FLAGS)?;
        let flags = self.number::<2>()?;
        let mut table = None;
        // In the order of the flags, the highest first: AMQP 0-9-1, class basic.
        for bit in (2..16).rev().filter(|bit| flags >> bit & 1 == 1) {
            match bit {
                13 => {
                    let start = self.next;
                    let size = self.number::<4>()?;
                    let inside = self.skip(size)?;
                    let (start, end) = (start, inside.end);
                    self.next = inside.start;
                    let read = self.table(end, 0);
                    self.next = end;
                    table = Some((start..end, read));
                }
                // Delivery mode and priority, and the time.
                12 | 11 => self.skip(1).map(|_| ())?,
                6 => self.skip(8).map(|_| ())?,
                _ => self.short_string()?,
            }
        }
        table
    }

    fn table(&mut self, end: usize, depth: usize) -> Result<(), Unreadable> {
        while self.next < end {
            self.short_string().ok_or(SHORT)?;
            self.value(depth)?;
        }
        if self.next == end { Ok(()) } else { Err(SHORT) }
    }

    fn value(&mut self, depth: usize) -> Result<(), Unreadable> {
        let kind = self.number::<1>().and_then(|kind| u8::try_from(kind).ok()).ok_or(SHORT)?;
        let size = match kind {
            b'V' => 0,
            b't' | b'b' | b'B' => 1,
            b's' | b'U' | b'u' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'L' | b'l' | b'd' | b'T' => 8,
            b'S' | b'x' | b'A' | b'F' => self.number::<4>().ok_or(SHORT)?,
            _ => return Err("a header has a type that this client doesn't know"),
        };
        let inside = self.skip(size).ok_or(SHORT)?;
        if !matches!(kind, b'A' | b'F') {
            return Ok(());
        }
        if depth == DEPTH_MAX {
            return Err("the headers nest too deep");
        }
        self.next = inside.start;
        if kind == b'F' {
            return self.table(inside.end, depth + 1);
        }
        while self.next < inside.end {
            self.value(depth + 1)?;
        }
        if self.next == inside.end { Ok(()) } else { Err(SHORT) }
    }
}

/// Replaces what isn't UTF-8, in the same number of bytes: a lone surrogate, which Python writes as if it were a letter, by
/// U+FFFD, and any other byte by a question mark.
fn make_utf8(text: &mut [u8]) {
    let mut good = 0;
    while let Err(error) = std::str::from_utf8(&text[good..]) {
        let bad = good + error.valid_up_to();
        if let [0xED, 0xA0..=0xBF, 0x80..=0xBF, ..] = text[bad..] {
            text[bad..bad + 3].copy_from_slice("\u{fffd}".as_bytes());
            good = bad + 3;
        } else {
            text[bad] = b'?';
            good = bad + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        [&[kind, 0, 1][..], &sized(payload), &[0xCE]].concat()
    }

    fn sized(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
    }

    fn short(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).unwrap()], text].concat()
    }

    /// A content header with a table and all that can stand around it.
    fn header(correlation_id: &[u8], table: &[u8]) -> Vec<u8> {
        let parts = [
            vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0b1111_1111, 0b1111_1100],
            short(b"application/json"),
            short(b"utf-8"),
            sized(table),
            vec![2, 9],
            short(correlation_id),
            short(b"reply to"),
            short(b"expiration"),
            short(b"message id"),
            vec![0; 8],
            short(b"type"),
            short(b"user"),
            short(b"application"),
            short(b""),
        ];
        frame(HEADER, &parts.concat())
    }

    fn entry(name: &[u8], kind: u8, value: &[u8]) -> Vec<u8> {
        [&short(name)[..], &[kind], value].concat()
    }

    fn nested(depth: usize) -> Vec<u8> {
        let inner = (1..depth).fold(Vec::new(), |inner, _| [b"A".to_vec(), sized(&inner)].concat());
        entry(b"deep", b'A', &sized(&inner))
    }

    fn sieved(frame_max: u32, bytes: &[u8], cut: usize) -> Vec<u8> {
        let (mut sieve, mut out) = (Sieve::new(frame_max), Vec::new());
        for piece in bytes.chunks(cut) {
            sieve.put(piece);
            let mut some = [0; 7];
            loop {
                match sieve.take(&mut some) {
                    0 => break,
                    count => out.extend_from_slice(&some[..count]),
                }
            }
        }
        assert!(sieve.bytes.is_empty(), "nothing is held back");
        out
    }

    #[test]
    fn what_can_be_read_goes_through_as_it_is_however_it_is_cut() {
        let sizes = [(0, &b"V"[..]), (1, b"tbB"), (2, b"sUu"), (4, b"Iif"), (5, b"D"), (8, b"LldT")];
        let mut table = Vec::new();
        for (size, kinds) in sizes {
            kinds.iter().for_each(|kind| table.extend(entry(b"n", *kind, &vec![0xff; size])));
        }
        table.extend(entry(b"text", b'S', &sized(b"no UTF-8: \xff")));
        table.extend(entry(b"bytes", b'x', &sized(&[0xff])));
        table.extend(entry(b"table", b'F', &sized(&entry("\u{fc}".as_bytes(), b'V', &[]))));
        table.extend(nested(DEPTH_MAX));
        let stream = [
            frame(METHOD, &[0, 10, 0, 30, 0xff]),
            header(b"id", &table),
            frame(BODY, &[0xff; 2000]),
            frame(HEARTBEAT, &[]),
            frame(HEADER, &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            b"AMQP\x00\x00\x09\x01 and whatever else".to_vec(),
        ]
        .concat();
        for cut in (1..100).chain([stream.len()]) {
            assert_eq!(sieved(32_768, &stream, cut), stream, "{cut}");
        }
    }

    #[test]
    fn texts_are_made_utf_8_where_they_stand() {
        let deliver = |key: &[u8]| {
            let parts = [vec![0, 60, 0, 60], short(b"tag"), vec![0; 9], short(b"exchange"), short(key)];
            frame(METHOD, &parts.concat())
        };
        let closed = |words: &[u8]| {
            let parts = [vec![0, 20, 0, 40, 1, 0x94], short(words), vec![0; 4]];
            frame(METHOD, &parts.concat())
        };
        let table = |name: &[u8]| entry(b"t", b'F', &sized(&entry(name, b'A', &sized(b"V"))));
        let cases = [
            (header(b"id-\xed\xb3\xbf", &[]), header("id-\u{fffd}".as_bytes(), &[])),
            (header(b"\xff\xc3\xa9\xe9", &[]), header("?\u{e9}?".as_bytes(), &[])),
            (header(b"id", &table(b"x-\xff")), header(b"id", &table(b"x-?"))),
            (deliver(b"k\xff"), deliver(b"k?")),
            (closed(b"no queue '\xc3"), closed(b"no queue '?")),
            (frame(METHOD, &[0, 60, 0, 60, 9]), frame(METHOD, &[0, 60, 0, 60, 9])),
        ];
        for (came, expected) in cases {
            for cut in [1, 5, came.len()] {
                assert_eq!(sieved(32_768, &came, cut), expected);
            }
        }
    }

    #[test]
    fn a_table_that_cannot_be_read_is_replaced_by_the_reason() {
        let cases = [
            (nested(DEPTH_MAX + 1), "the headers nest too deep"),
            (nested(5000), "the headers nest too deep"),
            (entry(b"n", b'?', &[]), "a header has a type that this client doesn't know"),
            (entry(b"n", b'S', &[0, 0, 0, 9]), SHORT),
            (
                entry(b"n", b'S', &sized(&[0; 32_768])),
                "the header has 32891 bytes, and this client takes 32768",
            ),
        ];
        for (table, why) in cases {
            let body = frame(BODY, b"abc");
            let came = [header(b"id", &table), body.clone()].concat();
            let note = entry(b"unreadable-headers", b'S', &sized(why.as_bytes()));
            let expected = [header(b"id", &note), body].concat();
            for cut in [1000, came.len()] {
                assert_eq!(sieved(32_768, &came, cut), expected, "{why}");
            }
        }
    }
}
