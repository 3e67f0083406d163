//! Kafka's protocol by hand, for records that client libraries neither write nor read.

use std::io::{Read, Write};
use std::net::TcpStream;

use sweepstream::config::Settings;

const PRODUCE: (i16, i16) = (0, 3);
const FETCH: (i16, i16) = (1, 4);

/// A record whose header names may be any bytes.
pub struct Raw<'a> {
    pub key: &'a [u8],
    pub value: &'a [u8],
    pub headers: &'a [(&'a [u8], &'a [u8])],
}

/// Produces a record to a partition.
#[track_caller]
pub fn produce(settings: &Settings, topic: &str, partition: i32, record: &Raw<'_>) {
    let batch = batch(record);
    let mut body = Vec::new();
    body.extend((-1_i16).to_be_bytes()); // no transactional id
    body.extend((-1_i16).to_be_bytes()); // all replicas
    body.extend(30_000_i32.to_be_bytes());
    body.extend(1_i32.to_be_bytes());
    string(&mut body, topic);
    body.extend(1_i32.to_be_bytes());
    body.extend(partition.to_be_bytes());
    body.extend(i32::try_from(batch.len()).unwrap().to_be_bytes());
    body.extend(batch);
    let answer = request(settings, PRODUCE, &body);
    // Correlation id, one topic with its name, one partition with its number; then the error.
    let at = 4 + 4 + 2 + topic.len() + 4 + 4;
    assert_eq!(answer[at..at + 2], [0, 0], "the broker refuses the record");
}

/// Some of what a partition holds, as it is on the wire.
pub fn fetch(settings: &Settings, topic: &str, partition: i32) -> Vec<u8> {
    let mut body = Vec::new();
    for number in [-1, 1_000, 1, 10_000_000] {
        body.extend(i32::to_be_bytes(number)); // no replica; how long to wait for how many bytes, and at most how many
    }
    body.push(1); // read committed
    body.extend(1_i32.to_be_bytes());
    string(&mut body, topic);
    body.extend(1_i32.to_be_bytes());
    body.extend(partition.to_be_bytes());
    body.extend(0_i64.to_be_bytes());
    body.extend(10_000_000_i32.to_be_bytes());
    request(settings, FETCH, &body)
}

/// A header as it stands in a record.
pub fn header(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    sized(&mut bytes, name);
    sized(&mut bytes, value);
    bytes
}

fn request(settings: &Settings, (key, version): (i16, i16), body: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(key.to_be_bytes());
    message.extend(version.to_be_bytes());
    message.extend(7_i32.to_be_bytes());
    string(&mut message, "test");
    message.extend(body);
    let mut stream = TcpStream::connect(&settings.kafka.bootstrap_servers).unwrap();
    stream.write_all(&u32::try_from(message.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(&message).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).unwrap();
    answer
}

/// A batch of one record, version 2.
fn batch(record: &Raw<'_>) -> Vec<u8> {
    let mut content = vec![0]; // attributes
    content.extend([0, 0]); // times and offsets are the batch's
    sized(&mut content, record.key);
    sized(&mut content, record.value);
    varint(&mut content, record.headers.len());
    for (name, value) in record.headers {
        content.extend(header(name, value));
    }
    let mut checked = Vec::new();
    checked.extend(0_i16.to_be_bytes()); // not compressed, no transaction
    checked.extend(0_i32.to_be_bytes()); // last offset
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    checked.extend(now_ms.to_be_bytes());
    checked.extend(now_ms.to_be_bytes());
    checked.extend((-1_i64).to_be_bytes()); // no producer id, epoch or sequence
    checked.extend((-1_i16).to_be_bytes());
    checked.extend((-1_i32).to_be_bytes());
    checked.extend(1_i32.to_be_bytes());
    sized(&mut checked, &content);
    let mut sealed = (-1_i32).to_be_bytes().to_vec(); // leader epoch
    sealed.push(2);
    sealed.extend(crc32c(&checked).to_be_bytes());
    sealed.extend(checked);
    let mut batch = 0_i64.to_be_bytes().to_vec();
    batch.extend(i32::try_from(sealed.len()).unwrap().to_be_bytes());
    batch.extend(sealed);
    batch
}

fn string(into: &mut Vec<u8>, text: &str) {
    into.extend(i16::try_from(text.len()).unwrap().to_be_bytes());
    into.extend(text.as_bytes());
}

fn sized(into: &mut Vec<u8>, bytes: &[u8]) {
    varint(into, bytes.len());
    into.extend(bytes);
}

/// Zigzag, seven bits at a time.
fn varint(into: &mut Vec<u8>, number: usize) {
    let mut left = number << 1;
    while left >= 0x80 {
        into.push((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    into.push(left as u8);
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}
