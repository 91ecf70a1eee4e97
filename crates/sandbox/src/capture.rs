//! What is kept of an output that may be endless: its beginning and its end.

use std::collections::VecDeque;

/// Keeps the first and the last bytes of a stream.
#[derive(Debug)]
pub struct Capture {
    head_max: usize,
    tail_max: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    omitted: u64,
}

/// What was kept of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Captured {
    /// The bytes. Where some were left out, a line says so.
    pub bytes: Vec<u8>,
    /// How many bytes were left out; 0 when all is there.
    pub omitted: u64,
}

impl Capture {
    /// Keeps up to `limit` bytes: half of them from the beginning, half from the end.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let head_max = limit / 2;
        let tail_max = limit - head_max;
        Self { head_max, tail_max, head: Vec::new(), tail: VecDeque::new(), omitted: 0 }
    }

    /// Takes what was read next.
    pub fn push(&mut self, bytes: &[u8]) {
        let room = self.head_max - self.head.len();
        let (first, rest) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(first);
        // What alone is longer than the tail pushes out all that was there.
        let (skipped, last) = rest.split_at(rest.len().saturating_sub(self.tail_max));
        let over = (self.tail.len() + last.len()).saturating_sub(self.tail_max);
        self.tail.drain(..over);
        self.tail.extend(last);
        self.omitted += (skipped.len() + over) as u64;
    }

    /// Gives what was kept, and begins anew.
    pub fn take(&mut self) -> Captured {
        let omitted = std::mem::take(&mut self.omitted);
        let mut bytes = std::mem::take(&mut self.head);
        if omitted > 0 {
            bytes.extend_from_slice(format!("\n[... {omitted} bytes left out ...]\n").as_bytes());
        }
        let (first, second) = self.tail.as_slices();
        bytes.extend_from_slice(first);
        bytes.extend_from_slice(second);
        self.tail.clear();
        Captured { bytes, omitted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_and_tail_are_kept_whatever_the_pieces() {
        let text: Vec<u8> = (0..=99).map(|n: u8| b'0' + n % 10).collect();
        let cut = |left: &str, omitted: u64, right: &str| {
            (format!("{left}\n[... {omitted} bytes left out ...]\n{right}"), omitted)
        };
        let table = [
            (100, 10, cut("01234", 90, "56789")),
            (11, 10, cut("01234", 1, "67890")),
            (10, 10, ("0123456789".to_owned(), 0)),
            (3, 10, ("012".to_owned(), 0)),
            (7, 3, cut("0", 4, "56")),
            (5, 0, cut("", 5, "")),
            (0, 10, (String::new(), 0)),
        ];
        for (length, limit, (expected, omitted)) in table {
            for piece in [1, 2, 3, 7, 64, 100] {
                let mut capture = Capture::new(limit);
                text[..length].chunks(piece).for_each(|chunk| capture.push(chunk));
                let captured = capture.take();
                assert_eq!(
                    String::from_utf8_lossy(&captured.bytes),
                    expected,
                    "{length} in pieces of {piece}"
                );
                assert_eq!(captured.omitted, omitted);
                assert_eq!(capture.take(), Captured::default(), "it began anew");
            }
        }
    }
}
