//! The narrow seam between Celery's protocol and what moves its bytes: a publisher that waits for a confirm, and a
//! stream of deliveries that are settled exactly once.
//!
//! Two transports stand behind it: [`Broker::embedded`] (in this process, nothing durable) and [`Broker::connect`]
//! (RabbitMQ by AMQP 0-9-1). Nothing outside this module may know which one it has, and nothing here may know what a
//! body means.
