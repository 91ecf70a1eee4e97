//! What is measured, how it is compared, and what it looks like in the table.

use std::fmt;

use serde_json::{Value, json};

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// As with seconds.
    Less,
    /// As with tasks per second.
    More,
}

/// One side of a row: samples in the order in which they were taken.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Side {
    samples: Vec<f64>,
}

impl Side {
    /// Takes in a sample.
    pub fn add(&mut self, sample: f64) {
        self.samples.push(sample);
    }

    /// The median; none without samples.
    #[must_use]
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            odd if odd % 2 == 1 => Some(sorted[middle]),
            _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        }
    }
}

/// What one side has to reach, as a ratio of Regatta's median to another's, or as a number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reach {
    /// At most, or at least, this many times the peer.
    OfPeer(f64),
    /// At most, or at least, this many times the limit.
    OfLimit(f64),
    /// At most, or at least, this number itself.
    Number(f64),
}

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Row {
    /// What is measured, with its unit.
    pub work: &'static str,
    /// Which way is better.
    pub better: Better,
    /// Regatta's samples.
    pub regatta: Side,
    /// The peer's name and samples.
    pub peer: (&'static str, Side),
    /// The limit's samples, where there is a limit.
    pub limit: Side,
    /// What is to be reached; all of it.
    pub reach: Vec<Reach>,
}

impl Row {
    /// The table's head.
    #[must_use]
    pub fn head() -> String {
        format!(
            "{:<52} {:>11} {:>11} {:>11} {:>8} {:>8}  {:<12} {}",
            "work", "regatta", "peer", "limit", "/ peer", "/ limit", "peer", "reached"
        )
    }

    /// The median of the ratios of each round, whose two sides met the same mood of the machine; that of the medians
    /// where the sides were measured differently often.
    fn ratio(&self, to: &Side) -> Option<f64> {
        if to.samples.contains(&0.0) {
            return None;
        }
        if self.regatta.samples.len() == to.samples.len() {
            let pairs = self.regatta.samples.iter().zip(&to.samples);
            return Side { samples: pairs.map(|(ours, theirs)| ours / theirs).collect() }.median();
        }
        Some(self.regatta.median()? / to.median()?)
    }

    /// Whether all marks were reached; none when there is no number to tell by.
    #[must_use]
    pub fn reached(&self) -> Option<bool> {
        let (first, rest) = self.reach.split_first()?;
        std::iter::once(first).chain(rest).try_fold(true, |all, reach| {
            let (value, mark) = match reach {
                Reach::OfPeer(mark) => (self.ratio(&self.peer.1)?, *mark),
                Reach::OfLimit(mark) => (self.ratio(&self.limit)?, *mark),
                Reach::Number(mark) => (self.regatta.median()?, *mark),
            };
            Some(all && if self.better == Better::Less { value <= mark } else { value >= mark })
        })
    }

    /// Everything that was measured.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let side = |side: &Side| json!({ "median": side.median(), "samples": side.samples });
        json!({
            "work": self.work,
            "better": if self.better == Better::Less { "less" } else { "more" },
            "regatta": side(&self.regatta),
            "peer": { "name": self.peer.0, "result": side(&self.peer.1) },
            "limit": side(&self.limit),
            "of_peer": self.ratio(&self.peer.1),
            "of_limit": self.ratio(&self.limit),
            "reached": self.reached(),
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<f64>| number.map_or_else(|| "-".to_owned(), short);
        let ratio =
            |side: &Side| self.ratio(side).map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        write!(
            f,
            "{:<52} {:>11} {:>11} {:>11} {:>8} {:>8}  {:<12} {}",
            self.work,
            number(self.regatta.median()),
            number(self.peer.1.median()),
            number(self.limit.median()),
            ratio(&self.peer.1),
            ratio(&self.limit),
            self.peer.0,
            match self.reached() {
                Some(true) => "yes",
                Some(false) => "no",
                None => "-",
            }
        )
    }
}

/// Three digits that matter.
fn short(number: f64) -> String {
    let digits = if number >= 100.0 {
        0
    } else if number >= 10.0 {
        1
    } else if number >= 1.0 {
        2
    } else {
        3
    };
    format!("{number:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(samples: &[f64]) -> Side {
        Side { samples: samples.to_vec() }
    }

    fn row(better: Better, reach: Vec<Reach>) -> Row {
        let (regatta, peer) = (side(&[3.0, 1.0, 2.0]), ("peer", side(&[4.0])));
        Row { work: "w", better, regatta, peer, limit: side(&[1.0, 2.0]), reach }
    }

    #[test]
    fn medians_and_ratios() {
        assert_eq!(side(&[3.0, 1.0, 2.0]).median(), Some(2.0));
        assert_eq!(side(&[1.0, 2.0]).median(), Some(1.5));
        assert_eq!(side(&[]).median(), None);
        assert!(row(Better::Less, vec![]).to_string().contains("0.50"));
    }

    #[test]
    fn a_ratio_is_that_of_each_round_and_not_of_a_machine_that_changed_its_mood() {
        let limit = side(&[10.0, 5.0, 10.0]);
        let regatta = side(&[8.0, 4.0, 6.0]);
        let row = Row { regatta, limit, ..row(Better::More, vec![Reach::OfLimit(0.8)]) };
        assert_eq!(row.ratio(&row.limit), Some(0.8));
        assert_eq!(row.reached(), Some(true));
        assert_eq!(row.ratio(&side(&[1.0, 0.0, 1.0])), None);
    }

    #[test]
    fn a_mark_is_reached_from_the_right_side() {
        assert_eq!(row(Better::Less, vec![Reach::OfPeer(0.5)]).reached(), Some(true));
        assert_eq!(row(Better::Less, vec![Reach::OfPeer(0.4)]).reached(), Some(false));
        assert_eq!(row(Better::More, vec![Reach::OfPeer(0.5), Reach::OfLimit(2.0)]).reached(), Some(false));
        assert_eq!(row(Better::More, vec![Reach::Number(2.0)]).reached(), Some(true));
    }
}
