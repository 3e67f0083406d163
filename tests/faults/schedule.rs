//! What goes wrong, and when: a function of the seed.

use std::time::Duration;

use rand_chacha::rand_core::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Which stage's processes a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Embed,
    Train,
}

impl Target {
    pub const ALL: [Self; 2] = [Self::Embed, Self::Train];

    /// As `--stage` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Train => "train",
        }
    }
}

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProcessFault {
    /// SIGKILL at work.
    Kill,
    /// SIGKILL at work, and again while its successor starts.
    KillStarting,
    /// SIGTERM, and SIGKILL while it drains.
    KillDraining,
    /// SIGTERM.
    Restart,
    /// SIGSTOP until it is fenced and another has its work, then SIGCONT.
    Freeze,
    /// A second process joins, works, and leaves.
    Join,
    /// A second process joins, works, and is killed.
    JoinAndKill,
}

/// What happens to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BrokerFault {
    /// SIGKILL of its JVM.
    Kill,
    /// SIGSTOP of its JVM, for longer than a request may take.
    Pause,
    /// Stopped in order.
    Stop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Process(Target, ProcessFault),
    Broker(BrokerFault),
}

impl Fault {
    /// Processes of the program that it kills.
    pub fn kills(self) -> u32 {
        match self {
            Self::Process(_, ProcessFault::KillStarting) => 2,
            Self::Process(_, ProcessFault::Kill | ProcessFault::KillDraining | ProcessFault::JoinAndKill) => 1,
            Self::Process(..) | Self::Broker(_) => 0,
        }
    }

    /// As in the table.
    pub fn name(self) -> String {
        match self {
            Self::Process(target, fault) => {
                let what = match fault {
                    ProcessFault::Kill => "killed",
                    ProcessFault::KillStarting => "killed, and again while starting",
                    ProcessFault::KillDraining => "killed while draining",
                    ProcessFault::Restart => "stopped and started",
                    ProcessFault::Freeze => "frozen until fenced, then woken",
                    ProcessFault::Join => "second process joins and leaves",
                    ProcessFault::JoinAndKill => "second process joins and is killed",
                };
                format!("{}: {what}", target.name())
            }
            Self::Broker(BrokerFault::Kill) => "broker: killed and started".into(),
            Self::Broker(BrokerFault::Pause) => "broker: paused past its timeouts".into(),
            Self::Broker(BrokerFault::Stop) => "broker: stopped and started".into(),
        }
    }
}

/// A fault and its instants.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub fault: Fault,
    /// From the moment at which both stages are seen at work.
    pub after: Duration,
    /// From its first part to its second, e.g. from a start to the kill.
    pub then: Duration,
}

/// Faults that strike together, each another target.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub events: Vec<Event>,
    /// Processes started during the step have a name in their group (static membership).
    pub named: bool,
}

/// Each fault of a process once, for one stage or the other, and a fault of the broker.
pub fn short(seed: u64) -> Vec<Step> {
    use ProcessFault::{Freeze, Join, JoinAndKill, Kill, KillDraining, KillStarting, Restart};
    let mut chance = Chance::new(seed);
    let mut faults = [Kill, KillStarting, KillDraining, Restart, Join, JoinAndKill];
    chance.shuffle(&mut faults);
    // Side by side, so that it does not take long; being fenced takes longest.
    let pairs = [[Freeze, Freeze], [faults[0], faults[1]], [faults[2], faults[3]], [faults[4], faults[5]]];
    let both = |[embed, train]: [ProcessFault; 2]| {
        vec![Fault::Process(Target::Embed, embed), Fault::Process(Target::Train, train)]
    };
    let mut steps: Vec<Vec<Fault>> = pairs.into_iter().map(both).collect();
    let broker = [BrokerFault::Kill, BrokerFault::Pause, BrokerFault::Stop];
    steps.push(vec![Fault::Broker(broker[chance.below(broker.len())])]);
    chance.shuffle(&mut steps);
    steps.into_iter().map(|faults| chance.step(&faults)).collect()
}

/// Each kind of fault, and at least so many kills, singly and mixed.
pub fn long(seed: u64, kills: u32) -> Vec<Step> {
    let mut chance = Chance::new(seed);
    let (mut steps, mut killed, mut rounds) = (Vec::new(), 0, 0);
    while rounds == 0 || killed < kills {
        let mut columns = chance.columns();
        while let Some(faults) = chance.pick(&mut columns).filter(|_| rounds == 0 || killed < kills) {
            killed += faults.iter().map(|fault| fault.kills()).sum::<u32>();
            steps.push(chance.step(&faults));
        }
        rounds += 1;
    }
    steps
}

struct Chance(ChaCha8Rng);

impl Chance {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.0.next_u64() % bound as u64) as usize
    }

    fn millis(&mut self, bound: usize) -> Duration {
        Duration::from_millis(self.below(bound) as u64)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    fn step(&mut self, faults: &[Fault]) -> Step {
        let events =
            faults.iter().map(|&fault| Event { fault, after: self.millis(1200), then: self.millis(1500) }).collect();
        Step { events, named: self.below(3) == 0 }
    }

    /// Kills mostly, some of everything: for each stage and for the broker.
    fn columns(&mut self) -> [Vec<Fault>; 3] {
        use ProcessFault::{Freeze, Join, JoinAndKill, Kill, KillDraining, KillStarting, Restart};
        let processes = Target::ALL.map(|target| {
            let mut faults = vec![Kill, Kill, Kill, Kill, KillStarting, KillStarting, KillDraining, KillDraining];
            faults.extend([Restart, Freeze, Join, JoinAndKill]);
            self.shuffle(&mut faults);
            faults.into_iter().map(|fault| Fault::Process(target, fault)).collect::<Vec<_>>()
        });
        let mut broker = [BrokerFault::Kill, BrokerFault::Pause, BrokerFault::Stop].map(Fault::Broker).to_vec();
        self.shuffle(&mut broker);
        let [embed, train] = processes;
        [embed, train, broker]
    }

    /// One fault, or one of several columns together, as chance has it; none when all columns are empty.
    fn pick(&mut self, columns: &mut [Vec<Fault>; 3]) -> Option<Vec<Fault>> {
        let left: Vec<usize> = (0..3).flat_map(|column| vec![column; columns[column].len()]).collect();
        if left.is_empty() {
            return None;
        }
        let first = left[self.below(left.len())];
        let mut picked: Vec<Fault> = columns[first].pop().into_iter().collect();
        for (column, faults) in columns.iter_mut().enumerate().filter(|(column, _)| *column != first) {
            // The broker has few faults: mixing each of them half of the time is enough.
            let mixed = if column == 2 { self.below(12) == 0 } else { self.below(3) == 0 };
            if mixed {
                picked.extend(faults.pop());
            }
        }
        Some(picked)
    }
}
