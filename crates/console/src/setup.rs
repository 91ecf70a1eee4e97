//! `setup`: what workers with few rights find ready.

use regatta_celery::Broker;
use regatta_celery::transport::{Exchange, Queue, Topology};

use crate::args::SetupArgs;
use crate::color::Color;
use crate::error::ConsoleError;
use crate::show::Screen;
use crate::{Crew, outside};

pub(crate) async fn run(crew: &[Crew], args: &SetupArgs, color: Color) -> Result<bool, ConsoleError> {
    let broker = Broker::connect(&outside(&args.broker)?, args.broker.options("setup")).await?;
    let mut topology = Topology::default()
        .exchange(Exchange::topic("celeryev").durable())
        .exchange(Exchange::fanout("celery.pidbox"))
        .exchange(Exchange::direct("reply.celery.pidbox"));
    for one in crew {
        topology =
            topology.queue(Queue::celery(one.queue)).queue(Queue::celery(&format!("{}.dead", one.queue)));
    }
    broker.declare(&topology).await?;
    let mut screen = Screen::new(color.on_stdout());
    for one in crew {
        screen.line(&format!("Ready: queue {} and {}.dead for {}", one.queue, one.queue, one.worker));
    }
    screen.line("Ready: exchanges celeryev, celery.pidbox, reply.celery.pidbox");
    broker.close().await;
    screen.finish().map_err(ConsoleError::Output)?;
    Ok(true)
}
