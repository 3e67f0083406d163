//! texts → features, exactly once.

use sweepstream::features::codec;

use crate::support::{committed, embed, read, sentences, settings};

#[test]
fn every_text_becomes_one_matrix_with_its_key_label_partition_and_order() {
    let settings = settings("embed");
    let texts = sentences(200);
    embed(&settings, &texts);
    let (inputs, features) = (read(&settings, &settings.topics.texts), read(&settings, &settings.topics.features));
    assert_eq!(features.len(), texts.len());
    for (input, feature) in inputs.iter().zip(&features) {
        assert_eq!((input.partition, &input.key), (feature.partition, &feature.key));
        assert_eq!(input.header("label"), feature.header("label"));
        let source = format!("{}/{}/{}", settings.topics.texts, input.partition, input.offset);
        assert_eq!(feature.header("source"), Some(source));
        assert!(feature.header("embedder").unwrap().starts_with("all-minilm-l6-v2@"));
        assert_eq!(feature.header("truncated"), None);
        assert_eq!(codec::decode(feature.value.as_deref().unwrap()).unwrap().dim, 384);
    }
    let ends = committed(&settings, &settings.embed_group(), &settings.topics.texts);
    let consumed: i64 = ends.values().sum();
    assert_eq!(consumed, 200);
    assert!(read(&settings, &settings.topics.dead_letters).is_empty());
}
