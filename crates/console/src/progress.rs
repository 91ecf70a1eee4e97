//! How far a dispatch is, queue by queue, as the lines of a live view. Pure: it must not know brokers or terminals.

use std::time::Duration;

use owo_colors::{OwoColorize, Style};
use regatta_celery::transport::QueueDepth;

/// How wide a queue's bar is, in characters.
const BAR_WIDTH: usize = 24;

/// What is known of each queue's tasks.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    queues: Vec<QueueProgress>,
}

/// One queue's tasks.
#[derive(Debug, Default)]
struct QueueProgress {
    queue: String,
    /// How many are or will be sent there.
    total: usize,
    succeeded: usize,
    failed: usize,
    /// What the broker said last.
    seen: Option<QueueDepth>,
}

impl QueueProgress {
    fn done(&self) -> usize {
        self.succeeded + self.failed
    }

    /// Those that a worker has in hand, and those that wait for one. What the broker says is a moment old, and the
    /// queue may hold tasks of others.
    fn open(&self) -> (usize, usize) {
        let open = self.total - self.done();
        let ready = self.seen.map_or(open, |depth| usize::try_from(depth.ready).unwrap_or(usize::MAX));
        let waiting = ready.min(open);
        (open - waiting, waiting)
    }
}

impl Progress {
    /// `total` more tasks go to `queue`.
    pub(crate) fn expect(&mut self, queue: &str, total: usize) {
        self.of(queue).total += total;
    }

    /// A task of `queue` has ended.
    pub(crate) fn ended(&mut self, queue: &str, well: bool) {
        let line = self.of(queue);
        *(if well { &mut line.succeeded } else { &mut line.failed }) += 1;
    }

    /// What the broker says of a queue.
    pub(crate) fn seen(&mut self, queue: &str, depth: QueueDepth) {
        self.of(queue).seen = Some(depth);
    }

    fn of(&mut self, queue: &str) -> &mut QueueProgress {
        let at = self.queues.iter().position(|line| line.queue == queue).unwrap_or_else(|| {
            self.queues.push(QueueProgress { queue: queue.to_owned(), ..QueueProgress::default() });
            self.queues.len() - 1
        });
        &mut self.queues[at]
    }

    /// The lines: one for each queue, and one for the whole.
    pub(crate) fn draw(&self, elapsed: Duration, color: bool) -> Vec<String> {
        let paint = |style: Style, text: String| {
            if color && !text.is_empty() { text.style(style).to_string() } else { text }
        };
        let width = self.queues.iter().map(|line| line.queue.chars().count()).max().unwrap_or(0);
        let mut lines: Vec<String> = self
            .queues
            .iter()
            .map(|line| {
                let (running, waiting) = line.open();
                let cells = |count: usize| count * BAR_WIDTH / line.total.max(1);
                let (full, begun) = (cells(line.done()), cells(line.done() + running));
                let bar = format!(
                    "{}{}{}",
                    paint(Style::new().green(), "█".repeat(full)),
                    paint(Style::new().cyan(), "▒".repeat(begun - full)),
                    paint(Style::new().dimmed(), "░".repeat(BAR_WIDTH.saturating_sub(begun))),
                );
                let mut text = format!("  {}", paint(Style::new().bold(), format!("{:width$}", line.queue)));
                text += &format!("  {bar}  {}", paint(Style::new().green(), format!("{} done", line.done())));
                text += &format!("  {}", paint(Style::new().cyan(), format!("{running} running")));
                text += &format!("  {}", paint(Style::new().yellow(), format!("{waiting} waiting")));
                if line.failed > 0 {
                    text += &format!("  {}", paint(Style::new().red(), format!("{} failed", line.failed)));
                }
                if waiting > 0 && line.seen.is_some_and(|depth| depth.consumers == 0) {
                    text += &format!("  {}", paint(Style::new().red().bold(), "no worker".to_owned()));
                }
                text
            })
            .collect();
        let sum = |of: fn(&QueueProgress) -> usize| self.queues.iter().map(of).sum::<usize>();
        let (done, total) = (sum(QueueProgress::done), sum(|line| line.total));
        lines.push(format!("  {done} of {total} tasks, {:.1} s", elapsed.as_secs_f64()));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two queues: one with done, running and waiting tasks, one that nobody consumes.
    fn story() -> Progress {
        let mut progress = Progress::default();
        progress.expect("queue_a", 8);
        progress.expect("b", 2);
        progress.ended("queue_a", true);
        progress.ended("queue_a", false);
        progress.seen("queue_a", QueueDepth { ready: 3, consumers: 1 });
        progress.seen("b", QueueDepth { ready: 900, consumers: 0 });
        progress
    }

    #[test]
    fn each_queue_shows_what_is_done_runs_and_waits() {
        assert_eq!(
            story().draw(Duration::from_millis(1_500), false),
            [
                "  queue_a  ██████▒▒▒▒▒▒▒▒▒░░░░░░░░░  2 done  3 running  3 waiting  1 failed",
                "  b        ░░░░░░░░░░░░░░░░░░░░░░░░  0 done  0 running  2 waiting  no worker",
                "  2 of 10 tasks, 1.5 s",
            ]
        );
    }

    #[test]
    fn colours_change_no_word() {
        let (plain, colored) = (story().draw(Duration::ZERO, false), story().draw(Duration::ZERO, true));
        assert!(colored[0].contains("\u{1b}[32m2 done") && colored[1].contains("\u{1b}[31;1mno worker"));
        let stripped: Vec<String> =
            colored.iter().map(|line| anstream::adapter::strip_str(line).to_string()).collect();
        assert_eq!(stripped, plain);
    }
}
