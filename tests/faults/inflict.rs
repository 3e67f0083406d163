//! Inflicts faults. Delays are the schedule's; everything else that is waited for is a condition.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::inputs::{input, Input, PARTITIONS};
use crate::schedule::{BrokerFault, Event, Fault, ProcessFault, Step};
use crate::support;
use crate::table::Table;
use crate::watch::{now_ms, Watch};
use crate::world::{Broker, Workers, SESSION_TIMEOUT, TRANSACTION_TIMEOUT};

/// Inputs enough for one in each partition, none of them invalid.
const FEW: usize = 2 * PARTITIONS as usize;
/// Taken for dead by the group, and its transaction aborted by the broker (which looks once a second).
const FENCED: Duration =
    Duration::from_millis(1_200).saturating_add(SESSION_TIMEOUT).saturating_add(TRANSACTION_TIMEOUT);

/// Produces inputs, one number after another.
pub struct Feeder {
    settings: sweepstream::config::Settings,
    fed: Mutex<usize>,
}

impl Feeder {
    pub fn new(settings: &sweepstream::config::Settings) -> Self {
        Self { settings: settings.clone(), fed: Mutex::new(0) }
    }

    pub fn fed(&self) -> usize {
        *self.fed.lock().unwrap()
    }

    pub fn feed(&self, count: usize) {
        let mut fed = self.fed.lock().unwrap();
        let inputs: Vec<_> = (*fed..*fed + count).map(|number| input(number).out).collect();
        support::produce(&self.settings, &self.settings.topics.texts, &inputs);
        *fed += count;
    }

    pub fn inputs(&self) -> Vec<Input> {
        (0..self.fed()).map(input).collect()
    }
}

/// All that a step needs.
pub struct Scene<'s> {
    pub watch: &'s Watch,
    pub feeder: &'s Feeder,
    /// The embed stage and the train stage.
    pub workers: &'s mut [Workers; 2],
    pub broker: &'s mut Broker,
}

impl Scene<'_> {
    /// Brings both stages to work, strikes, and waits until everything moves again.
    pub fn play(&mut self, step: &Step, burst: usize, table: &mut Table) -> Result<()> {
        let began_ms = now_ms();
        self.feeder.feed(burst);
        for workers in self.workers.iter_mut() {
            workers.named = step.named;
            let (watch, target) = (self.watch, workers.target);
            workers.until("is not at work", |_| watch.moved(target, began_ms))?;
        }
        for event in &step.events {
            table.injected(event.fault);
        }
        let all = self.strike(step).with_context(|| format!("during {:?}", step.events))?;
        for (event, healed) in step.events.iter().zip(&all) {
            let took_ms = match event.fault {
                Fault::Process(..) => healed.took_ms,
                // A broker that is away holds up both stages, whatever else happened to them.
                Fault::Broker(_) => {
                    let since_ms = all.iter().map(|healed| healed.at_ms).max().unwrap_or(0);
                    self.feeder.feed(FEW);
                    for workers in self.workers.iter_mut() {
                        let (watch, target) = (self.watch, workers.target);
                        workers
                            .until("does not go on", |_| watch.moved(target, since_ms))
                            .with_context(|| format!("after {:?}", step.events))?;
                    }
                    Some(now_ms() - since_ms)
                }
            };
            table.survived(event.fault, took_ms);
        }
        Ok(())
    }

    /// Lets the events happen side by side.
    fn strike(&mut self, step: &Step) -> Result<Vec<Healed>> {
        let (watch, feeder) = (self.watch, self.feeder);
        let [embed, train] = &mut *self.workers;
        let broker = &mut *self.broker;
        let (mut embed, mut train, mut broker) = (Some(embed), Some(train), Some(broker));
        let broker_stays = !step.events.iter().any(|event| matches!(event.fault, Fault::Broker(_)));
        std::thread::scope(|scope| {
            let mut striking = Vec::new();
            for event in &step.events {
                let builder = std::thread::Builder::new().name("fault".into());
                let handle = match event.fault {
                    Fault::Process(target, fault) => {
                        let workers =
                            [&mut embed, &mut train][target as usize].take().context("two faults for one stage")?;
                        let hit = move || {
                            let healed_ms = hit_process(workers, fault, event, watch, feeder)?;
                            // With the broker away, the time would not be the fault's.
                            let took_ms =
                                broker_stays.then(|| recover(workers, healed_ms, watch, feeder)).transpose()?;
                            Ok(Healed { at_ms: healed_ms, took_ms })
                        };
                        builder.spawn_scoped(scope, hit)?
                    }
                    Fault::Broker(fault) => {
                        let broker = broker.take().context("two faults for one broker")?;
                        let hit = move || Ok(Healed { at_ms: hit_broker(broker, fault, event)?, took_ms: None });
                        builder.spawn_scoped(scope, hit)?
                    }
                };
                striking.push(handle);
            }
            let join = |handle: std::thread::ScopedJoinHandle<'_, Result<Healed>>| {
                handle.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the harness failed")))
            };
            striking.into_iter().map(join).collect()
        })
    }
}

/// A fault that is over.
struct Healed {
    at_ms: i64,
    /// From then until the stage moved again.
    took_ms: Option<i64>,
}

/// Waits until a stage moves again.
fn recover(workers: &mut Workers, healed_ms: i64, watch: &Watch, feeder: &Feeder) -> Result<i64> {
    feeder.feed(FEW);
    let target = workers.target;
    workers.until("does not go on", |_| watch.moved(target, healed_ms))?;
    Ok(now_ms() - healed_ms)
}

fn hit_broker(broker: &mut Broker, fault: BrokerFault, event: &Event) -> Result<i64> {
    std::thread::sleep(event.after);
    match fault {
        BrokerFault::Kill => {
            broker.kill()?;
            std::thread::sleep(event.then);
            broker.restart()?;
        }
        BrokerFault::Pause => {
            broker.signal("STOP")?;
            std::thread::sleep(broker.pause + event.then / 3);
            broker.signal("CONT")?;
        }
        BrokerFault::Stop => {
            broker.stop();
            std::thread::sleep(event.then);
            broker.restart()?;
        }
    }
    Ok(now_ms())
}

fn hit_process(
    workers: &mut Workers,
    fault: ProcessFault,
    event: &Event,
    watch: &Watch,
    feeder: &Feeder,
) -> Result<i64> {
    std::thread::sleep(event.after);
    match fault {
        ProcessFault::Kill => kill(workers),
        ProcessFault::KillStarting => {
            let _ = kill(workers)?;
            std::thread::sleep(event.then);
            kill(workers)
        }
        ProcessFault::KillDraining => {
            workers.first()?.signal("TERM")?;
            // A drain takes a fraction of a second.
            std::thread::sleep(event.then / 5);
            kill(workers)
        }
        ProcessFault::Restart => {
            workers.stop()?;
            let healed_ms = now_ms();
            workers.start()?;
            Ok(healed_ms)
        }
        ProcessFault::Freeze => freeze(workers, event, watch, feeder),
        ProcessFault::Join => {
            join(workers, event, watch, feeder)?;
            let healed_ms = now_ms();
            workers.stop_second()?;
            Ok(healed_ms)
        }
        ProcessFault::JoinAndKill => {
            join(workers, event, watch, feeder)?;
            let healed_ms = now_ms();
            if let Some(mut life) = workers.second.take() {
                let _ = life.kill()?;
            }
            Ok(healed_ms)
        }
    }
}

/// SIGKILL, and a successor at once.
fn kill(workers: &mut Workers) -> Result<i64> {
    // It may have just ended by itself.
    if let Some(mut life) = workers.first.take() {
        let _ = life.kill()?;
    }
    let killed_ms = now_ms();
    workers.start()?;
    Ok(killed_ms)
}

fn join(workers: &mut Workers, event: &Event, watch: &Watch, feeder: &Feeder) -> Result<()> {
    workers.start_second()?;
    workers.until("the second gets nothing to do", |workers| {
        workers.second.as_ref().is_some_and(|life| life.has_joined(0))
    })?;
    let joined_ms = now_ms();
    feeder.feed(FEW);
    let target = workers.target;
    workers.until("two do not go on", |_| watch.moved(target, joined_ms))?;
    feeder.feed(FEW);
    std::thread::sleep(event.then / 2);
    Ok(())
}

/// The frozen process wakes when another has had its work for a while, and must find out.
fn freeze(workers: &mut Workers, event: &Event, watch: &Watch, feeder: &Feeder) -> Result<i64> {
    workers.first()?.signal("STOP")?;
    let (frozen, frozen_ms) = (Instant::now(), now_ms());
    workers.start_second()?;
    feeder.feed(FEW);
    let target = workers.target;
    workers.until("nobody takes over", |_| frozen.elapsed() > FENCED && watch.moved(target, frozen_ms))?;
    std::thread::sleep(event.then / 3);
    let logged = workers.first()?.logged();
    workers.first()?.signal("CONT")?;
    // Either it comes back to its group, or it gives up and its successor does.
    let frozen_log = workers.first()?.log.clone();
    workers.until("it does not come back", |workers| {
        workers.first.as_ref().is_some_and(|life| life.has_joined(if life.log == frozen_log { logged } else { 0 }))
    })?;
    let healed_ms = now_ms();
    workers.stop_second()?;
    Ok(healed_ms)
}
