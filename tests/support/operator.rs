//! What an operator does to topics and groups, and transactions that are not the program's.

use std::collections::BTreeMap;

use futures::executor::block_on;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::ClientConfig;
use sweepstream::config::Settings;

use super::{create_topics, eventually, PATIENCE};

/// What an operator does to topics and groups.
pub struct Operator {
    client: AdminClient<DefaultClientContext>,
    settings: Settings,
}

impl Operator {
    pub fn new(settings: &Settings) -> Self {
        let client = ClientConfig::new().set("bootstrap.servers", &settings.kafka.bootstrap_servers).create().unwrap();
        Self { client, settings: settings.clone() }
    }

    /// Creates a topic and waits until it can be used.
    pub fn create_topic(&self, name: &str, partitions: i32, config: &[(&str, &str)]) {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(-1));
        for (key, value) in config {
            topic = topic.set(key, value);
        }
        let results = block_on(self.client.create_topics([&topic], &AdminOptions::new())).unwrap();
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        let client = self.client.inner();
        eventually("the topic is known", || {
            let metadata = client.fetch_metadata(Some(name), PATIENCE).unwrap();
            metadata.topics()[0].partitions().len() == partitions as usize
        });
    }

    /// The configuration of a topic.
    pub fn config(&self, topic: &str) -> BTreeMap<String, String> {
        let described =
            block_on(self.client.describe_configs(&[ResourceSpecifier::Topic(topic)], &AdminOptions::new()));
        let entries = described.unwrap().remove(0).unwrap().entries;
        entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect()
    }

    /// Sets one key of a topic and keeps all others that were set.
    pub fn alter(&self, topic: &str, key: &str, value: &str) {
        let described =
            block_on(self.client.describe_configs(&[ResourceSpecifier::Topic(topic)], &AdminOptions::new()));
        let entries = described.unwrap().remove(0).unwrap().entries;
        let mut wanted: BTreeMap<String, String> = entries
            .into_iter()
            .filter(|entry| entry.source == ConfigSource::DynamicTopic)
            .filter_map(|entry| Some((entry.name, entry.value?)))
            .collect();
        let _ = wanted.insert(key.to_owned(), value.to_owned());
        let mut altered = AlterConfig::new(ResourceSpecifier::Topic(topic));
        for (key, value) in &wanted {
            altered = altered.set(key, value);
        }
        let results = block_on(self.client.alter_configs([&altered], &AdminOptions::new())).unwrap();
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        eventually("the configuration is known", || self.config(topic).get(key).is_some_and(|now| now == value));
    }

    /// Deletes a topic and waits until it is gone.
    pub fn delete_topic(&self, name: &str) {
        let deleted = block_on(self.client.delete_topics(&[name], &AdminOptions::new())).unwrap();
        assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
        eventually("the topic is gone", || {
            let metadata = self.client.inner().fetch_metadata(Some(name), PATIENCE).unwrap();
            metadata.topics()[0].partitions().is_empty()
        });
    }

    /// Deletes a topic and creates it again as declared.
    pub fn recreate_topic(&self, name: &str) {
        self.delete_topic(name);
        create_topics(&self.settings);
    }

    /// Deletes the records of a partition below an offset.
    pub fn delete_records(&self, topic: &str, partition: i32, before: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(before)).unwrap();
        let deleted = block_on(self.client.delete_records(&list, &AdminOptions::new())).unwrap();
        deleted.find_partition(topic, partition).unwrap().error().unwrap();
    }

    /// Forgets a group's offsets, as Kafka does by itself after a week.
    pub fn delete_group(&self, group: &str) {
        eventually("the group is deleted", || {
            let results = block_on(self.client.delete_groups(&[group], &AdminOptions::new())).unwrap();
            results.iter().all(Result::is_ok)
        });
    }

    /// Sets the position of a group that has no members.
    pub fn commit(&self, group: &str, topic: &str, partition: i32, offset: i64) {
        self.commit_with(group, topic, partition, offset, "");
    }

    /// [`Operator::commit`], with something stored beside it.
    pub fn commit_with(&self, group: &str, topic: &str, partition: i32, offset: i64, metadata: &str) {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.settings.kafka.bootstrap_servers)
            .set("group.id", group)
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        let mut element = list.add_partition(topic, partition);
        element.set_offset(Offset::Offset(offset)).unwrap();
        element.set_metadata(metadata);
        consumer.commit(&list, rdkafka::consumer::CommitMode::Sync).unwrap();
    }
}

/// A transactional producer that is not the program's.
pub struct Transactions {
    producer: ThreadedProducer<rdkafka::producer::DefaultProducerContext>,
}

impl Transactions {
    pub fn new(settings: &Settings) -> Self {
        Self::lasting(settings, &format!("{}.other", settings.application_id))
    }

    /// Its transactions may stay open for ten minutes.
    pub fn lasting(settings: &Settings, transactional_id: &str) -> Self {
        let producer: ThreadedProducer<rdkafka::producer::DefaultProducerContext> = ClientConfig::new()
            .set("bootstrap.servers", &settings.kafka.bootstrap_servers)
            .set("transactional.id", transactional_id)
            .set("transaction.timeout.ms", "600000")
            .create()
            .unwrap();
        producer.init_transactions(PATIENCE).unwrap();
        producer.begin_transaction().unwrap();
        Self { producer }
    }

    /// Sends texts to a partition of a topic.
    pub fn send(&self, topic: &str, partition: i32, texts: &[&str]) {
        for text in texts {
            let record: BaseRecord<'_, str, str> = BaseRecord::to(topic).partition(partition).payload(*text);
            self.producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        self.producer.flush(PATIENCE).unwrap();
    }

    /// Adds a group's position to the open transaction.
    pub fn send_offset(&self, settings: &Settings, group: &str, topic: &str, partition: i32, offset: i64) {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &settings.kafka.bootstrap_servers)
            .set("group.id", group)
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset)).unwrap();
        self.producer.send_offsets_to_transaction(&list, &consumer.group_metadata().unwrap(), PATIENCE).unwrap();
    }

    /// Ends the transaction and opens the next.
    pub fn commit(&self) {
        self.producer.commit_transaction(PATIENCE).unwrap();
        self.producer.begin_transaction().unwrap();
    }

    /// Takes the transaction back and opens the next.
    pub fn abort(&self) {
        self.producer.abort_transaction(PATIENCE).unwrap();
        self.producer.begin_transaction().unwrap();
    }
}
