//! All Prometheus handles, one struct for each stage. Help texts are what `/metrics` shows.

use prometheus::{
    exponential_buckets, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry,
};

/// A name was registered twice or is not a valid one.
pub type Error = prometheus::Error;

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionOutcome {
    /// Everything became visible.
    Committed,
    /// Taken back; tried again.
    Aborted,
    /// The group or a newer producer had moved on.
    Fenced,
    /// The producer died and was built anew.
    Failed,
}

impl TransactionOutcome {
    /// All, as labels.
    pub const ALL: [Self; 4] = [Self::Committed, Self::Aborted, Self::Fenced, Self::Failed];

    /// As a label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Aborted => "aborted",
            Self::Fenced => "fenced",
            Self::Failed => "failed",
        }
    }
}

/// Metrics of a process.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Where they are registered.
    pub registry: Registry,
    /// Of the embed stage.
    pub embed: Embed,
    /// Of the train stage.
    pub train: Train,
}

/// Metrics of the embed stage.
#[derive(Clone, Debug)]
pub struct Embed {
    /// Records read from `texts`.
    pub records: IntCounter,
    /// Matrices committed to `features`.
    pub features: IntCounter,
    /// Dead letters committed, by reason.
    pub dead_letters: IntCounterVec,
    /// Texts of which tokens were cut off.
    pub truncated: IntCounter,
    /// Tokens of an inference call, padding included.
    pub batch_tokens: Histogram,
    /// Share of padding in the tokens of the last chunk.
    pub padding_ratio: Gauge,
    /// Time of an inference call.
    pub inference_duration: Histogram,
    /// Time of a transaction.
    pub transaction_duration: Histogram,
    /// Transactions by outcome.
    pub transactions: IntCounterVec,
    /// From the input record's timestamp to its commit.
    pub latency: Histogram,
    /// Lag of the embed group.
    pub lag: IntGaugeVec,
    /// Rebalances of the embed group that reached this process.
    pub rebalances: IntCounter,
}

/// Metrics of the train stage.
#[derive(Clone, Debug)]
pub struct Train {
    /// Trials known to this process, by state.
    pub trials: IntGaugeVec,
    /// Epochs finished.
    pub epochs: IntCounter,
    /// Optimizer updates.
    pub steps: IntCounter,
    /// Records replayed.
    pub records: IntCounter,
    /// Records read from the features topic, once for all trials that follow a stream.
    pub records_read: IntCounter,
    /// Streams that trials follow.
    pub streams: IntGauge,
    /// Records replayed in the last second, all trials together.
    pub records_per_second: Gauge,
    /// Bytes of checkpoints committed.
    pub checkpoint_bytes: IntCounter,
    /// Checkpoints that could not be used.
    pub checkpoints_damaged: IntCounter,
    /// Time of an epoch.
    pub epoch_duration: Histogram,
    /// Time of a transaction.
    pub transaction_duration: Histogram,
    /// Transactions by outcome.
    pub transactions: IntCounterVec,
    /// Rebalances of the train group that reached this process.
    pub rebalances: IntCounter,
    /// Epoch that a running trial is in.
    pub trial_epoch: IntGaugeVec,
    /// Records of its range that a running trial has still to read in this epoch.
    pub trial_lag: IntGaugeVec,
    /// Last training loss of a running trial.
    pub trial_loss: GaugeVec,
}

impl Metrics {
    /// Registers everything on a registry of its own.
    ///
    /// # Errors
    /// When two metrics share a name: a mistake in this file.
    pub fn new() -> Result<Self, Error> {
        let registry = Registry::new();
        let embed = Embed::register(&registry)?;
        let train = Train::register(&registry)?;
        let info =
            IntGaugeVec::new(Opts::new("sweepstream_build_info", "Always 1; the version is a label."), &["version"])?;
        registry.register(Box::new(info.clone()))?;
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self { registry, embed, train })
    }

    /// Everything in Prometheus' text format.
    ///
    /// # Errors
    /// When a metric cannot be written as text.
    pub fn text(&self) -> Result<String, Error> {
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

impl Embed {
    fn register(registry: &Registry) -> Result<Self, Error> {
        let r = Registrar(registry);
        let embed = Self {
            records: r.counter("embed_records_total", "Records read from the texts topic.")?,
            features: r.counter("features_records_total", "Matrices committed to the features topic.")?,
            dead_letters: r.counters("dead_letters_total", "Dead letters committed, by reason.", "reason")?,
            truncated: r.counter("embed_truncated_total", "Texts of which tokens beyond max_length were cut off.")?,
            batch_tokens: r.histogram(
                "embed_batch_tokens",
                "Tokens of an inference call, padding included.",
                exponential_buckets(16.0, 2.0, 10)?,
            )?,
            padding_ratio: r.gauge("embed_padding_ratio", "Share of padding in the tokens of the last chunk.")?,
            inference_duration: r.seconds("embed_inference_duration_seconds", "Time of an inference call.")?,
            transaction_duration: r
                .seconds("features_transaction_duration_seconds", "Time of a transaction of the embed stage.")?,
            transactions: r.counters(
                "features_transactions_total",
                "Transactions of the embed stage, by outcome.",
                "outcome",
            )?,
            latency: r
                .seconds("embed_latency_seconds", "From the input record's timestamp to the commit of its verdict.")?,
            lag: {
                let lag = IntGaugeVec::new(
                    Opts::new(
                        "sweepstream_consumer_lag_records",
                        "Last stable offset less committed offset, of partitions this process owns.",
                    ),
                    &["topic", "partition"],
                )?;
                registry.register(Box::new(lag.clone()))?;
                lag
            },
            rebalances: r
                .counter("embed_rebalances_total", "Rebalances of the embed group that reached this process.")?,
        };
        for outcome in TransactionOutcome::ALL {
            embed.transactions.with_label_values(&[outcome.label()]).reset();
        }
        Ok(embed)
    }
}

impl Train {
    fn register(registry: &Registry) -> Result<Self, Error> {
        let r = Registrar(registry);
        let train = Self {
            trials: r.gauges("trials", "Trials in the partitions this process owns, by state.", "state")?,
            epochs: r.counter("trial_epochs_total", "Epochs finished, all trials together.")?,
            steps: r.counter("trial_steps_total", "Optimizer updates, all trials together.")?,
            records: r.counter("trial_records_total", "Records replayed, all trials together.")?,
            records_read: r.counter(
                "replay_records_total",
                "Records read from the features topic for trials; trials that share a stream read a record once.",
            )?,
            streams: {
                let streams = IntGauge::new("sweepstream_replay_streams", "Streams that trials follow.")?;
                registry.register(Box::new(streams.clone()))?;
                streams
            },
            records_per_second: r
                .gauge("trial_records_per_second", "Records replayed in the last second, all trials together.")?,
            checkpoint_bytes: r.counter("checkpoint_bytes_total", "Bytes of checkpoints committed.")?,
            checkpoints_damaged: r.counter(
                "checkpoints_damaged_total",
                "Checkpoints found damaged when a trial was taken over; the one before was used.",
            )?,
            epoch_duration: r.seconds("trial_epoch_duration_seconds", "Time of an epoch of a trial.")?,
            transaction_duration: r
                .seconds("output_transaction_duration_seconds", "Time of a checkpoint's transaction.")?,
            transactions: r.counters("output_transactions_total", "Checkpoint transactions, by outcome.", "outcome")?,
            rebalances: r
                .counter("train_rebalances_total", "Rebalances of the train group that reached this process.")?,
            trial_epoch: r.gauges("trial_epoch", "Epoch that a running trial is in, from 0.", "trial")?,
            trial_lag: r.gauges(
                "trial_lag_records",
                "Records of its range that a running trial has still to read in this epoch.",
                "trial",
            )?,
            trial_loss: {
                let loss = GaugeVec::new(
                    Opts::new("sweepstream_trial_loss", "Training loss of a running trial's last step."),
                    &["trial"],
                )?;
                registry.register(Box::new(loss.clone()))?;
                loss
            },
        };
        for outcome in TransactionOutcome::ALL {
            train.transactions.with_label_values(&[outcome.label()]).reset();
        }
        Ok(train)
    }

    /// Ends the series of a trial.
    pub fn forget(&self, trial: &str) {
        // Absent series are fine: the trial may have ended before its first step.
        drop(self.trial_epoch.remove_label_values(&[trial]));
        drop(self.trial_lag.remove_label_values(&[trial]));
        drop(self.trial_loss.remove_label_values(&[trial]));
    }
}

struct Registrar<'r>(&'r Registry);

impl Registrar<'_> {
    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, Error> {
        let counter = IntCounter::new(format!("sweepstream_{name}"), help)?;
        self.0.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> Result<IntCounterVec, Error> {
        let counters = IntCounterVec::new(Opts::new(format!("sweepstream_{name}"), help), &[label])?;
        self.0.register(Box::new(counters.clone()))?;
        Ok(counters)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<Gauge, Error> {
        let gauge = Gauge::new(format!("sweepstream_{name}"), help)?;
        self.0.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }

    fn gauges(&self, name: &str, help: &str, label: &str) -> Result<IntGaugeVec, Error> {
        let gauges = IntGaugeVec::new(Opts::new(format!("sweepstream_{name}"), help), &[label])?;
        self.0.register(Box::new(gauges.clone()))?;
        Ok(gauges)
    }

    fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> Result<Histogram, Error> {
        let histogram = Histogram::with_opts(HistogramOpts::new(format!("sweepstream_{name}"), help).buckets(buckets))?;
        self.0.register(Box::new(histogram.clone()))?;
        Ok(histogram)
    }

    /// From a millisecond to about a minute.
    fn seconds(&self, name: &str, help: &str) -> Result<Histogram, Error> {
        self.histogram(name, help, exponential_buckets(0.001, 2.0, 17)?)
    }
}

/// Sets an unsigned count on a signed gauge.
pub fn set(gauge: &IntGauge, value: usize) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}
