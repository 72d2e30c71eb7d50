//! Every defect has its own error, which names the key or tensor and the byte.

use fathom_gguf::{Defect, Error, Fault, File, Place};

use crate::raw::Raw;

const U8: u32 = 0;
const U32: u32 = 4;
const BOOL: u32 = 7;
const STR: u32 = 8;
const ARR: u32 = 9;
const F32: u32 = 0;
const MXFP4: u32 = 39;

fn fault(raw: Raw) -> Fault {
    match File::from_bytes(raw.0) {
        Err(Error::Invalid { fault, .. }) => *fault,
        Err(other) => panic!("not a fault of the file: {other}"),
        Ok(_) => panic!("the file was accepted"),
    }
}

#[track_caller]
fn refused(raw: Raw, place: Place, at: u64, defect: Defect) {
    assert_eq!(fault(raw), Fault { defect, place, at });
}

fn key(name: &str) -> Place {
    Place::Key(name.to_owned())
}

fn tensor(name: &str) -> Place {
    Place::Tensor(name.to_owned())
}

#[test]
fn preamble() {
    use Place::Header;
    refused(Raw::default(), Header, 0, Defect::NotGguf { found: vec![] });
    refused(Raw(b"GGML....".to_vec()), Header, 0, Defect::NotGguf { found: b"GGML".to_vec() });
    refused(Raw(b"GGUF\x03".to_vec()), Header, 4, Defect::CutOff { needed: 4, left: 1 });
    refused(Raw::file(3u32.swap_bytes(), 0, 0), Header, 4, Defect::BigEndian);
    for version in [0, 1, 4, u32::MAX] {
        refused(Raw::file(version, 0, 0), Header, 4, Defect::Version { version });
    }
    refused(Raw::file(3, 1 << 20 | 1, 0), Header, 8, Defect::TooManyTensors { count: (1 << 20) + 1 });
    refused(Raw::file(3, 0, u64::MAX), Header, 16, Defect::TooManyKeys { count: u64::MAX });
    refused(Raw::file(3, 5, 0), Header, 8, Defect::ImpossibleCount { count: 5, left: 0 });
    refused(Raw::file(3, 0, 5).bytes(&[0; 20]), Header, 16, Defect::ImpossibleCount { count: 5, left: 20 });
    refused(Raw(Raw::file(3, 0, 0).0[..15].to_vec()), Header, 8, Defect::CutOff { needed: 8, left: 7 });
}

#[test]
fn key_names() {
    let one = || Raw::file(3, 0, 1);
    refused(one().str("").u32(U32).bytes(&[0; 9]), Place::KeyNumber(0), 24, Defect::EmptyKey);
    refused(one().u64(65536).bytes(&[b'k'; 65536]), Place::KeyNumber(0), 24, Defect::KeyTooLong { bytes: 65536 });
    refused(one().u64(100).bytes(&[b'k'; 20]), Place::KeyNumber(0), 32, Defect::CutOff { needed: 100, left: 20 });
    let torn = one().u64(3).bytes(&[b'k', 0xFF, b'y']).u32(U8).u8(0);
    refused(torn, Place::KeyNumber(0), 32, Defect::NotUtf8 { valid_bytes: 1 });
    let twice = Raw::file(3, 0, 2).key("k", U32).u32(1);
    let at = twice.at();
    refused(twice.key("k", U8).u8(0).u8(0), key("k"), at, Defect::DuplicateKey);
}

#[test]
fn values() {
    let one = |type_id| Raw::file(3, 0, 1).key("k", type_id);
    let at = one(U8).at();
    refused(one(13).u64(0), key("k"), at - 4, Defect::UnknownValueType { id: 13 });
    refused(one(BOOL).u8(2), key("k"), at, Defect::InvalidBool { byte: 2 });
    refused(one(10).bytes(&[0; 7]), key("k"), at, Defect::CutOff { needed: 8, left: 7 });
    refused(one(STR).u64(1 << 40), key("k"), at, Defect::StringTooLong { bytes: 1 << 40 });
    refused(one(STR).u64(10).u8(0), key("k"), at + 8, Defect::CutOff { needed: 10, left: 1 });
    refused(one(STR).u64(1).u8(0xC3), key("k"), at + 8, Defect::NotUtf8 { valid_bytes: 0 });
}

#[test]
fn arrays() {
    let one = |type_id| Raw::file(3, 0, 1).key("k", ARR).u32(type_id);
    let at = one(U8).at();
    refused(one(99).u64(0), key("k"), at - 4, Defect::UnknownValueType { id: 99 });
    refused(one(U8).u64(1 << 31), key("k"), at, Defect::ArrayTooLong { count: 1 << 31 });
    refused(one(U32).u64(9).bytes(&[0; 35]), key("k"), at, Defect::ImpossibleCount { count: 9, left: 35 });
    refused(one(STR).u64(3).bytes(&[0; 20]), key("k"), at, Defect::ImpossibleCount { count: 3, left: 20 });
    refused(one(BOOL).u64(3).bytes(&[1, 0, 7]), key("k"), at + 10, Defect::InvalidBool { byte: 7 });

    let cut = one(STR).u64(2).str("ab").u64(9).u8(b'x');
    refused(cut, key("k"), at + 8 + 10 + 8, Defect::CutOff { needed: 9, left: 1 });
    // Valid together, torn apart: 0xC3 | 0xA4 is one character.
    let torn = one(STR).u64(3).str("ab").u64(1).u8(0xC3).u64(1).u8(0xA4);
    refused(torn, key("k"), at + 8 + 10, Defect::NotUtf8 { valid_bytes: 0 });

    let nested = |depth| (1..depth).fold(Raw::file(3, 0, 1).key("k", ARR), |raw, _| raw.u32(ARR).u64(1));
    assert!(File::from_bytes(nested(4).u32(U8).u64(0).0).is_ok());
    let too_deep = nested(5).u32(U8).u64(0);
    let at = too_deep.at() - 12;
    refused(too_deep, key("k"), at, Defect::ArrayTooDeep);
}

#[test]
fn alignment() {
    let with = |alignment| Raw::file(3, 0, 1).key("general.alignment", U32).u32(alignment);
    let (place, at) = (key("general.alignment"), with(1).at() - 8);
    for alignment in [0, 3, 48] {
        refused(with(alignment), place.clone(), at, Defect::AlignmentNotPowerOfTwo { alignment });
    }
    let text = Raw::file(3, 0, 1).key("general.alignment", STR).str("32");
    refused(text, place, at, Defect::AlignmentType { found: "str".to_owned() });
}

#[test]
fn tensor_descriptions() {
    let one =
        |name: &str, ne: &[u64], type_id| Raw::file(3, 1, 0).tensor(name, ne, type_id, 0).pad(32).bytes(&[0; 256]);
    let name_at = 24;
    let ne_at = |name: &str| 24 + 8 + name.len() as u64;
    refused(one("", &[1], F32), Place::TensorNumber(0), name_at, Defect::EmptyTensorName);
    let long = "n".repeat(64);
    refused(one(&long, &[1], F32), Place::TensorNumber(0), name_at, Defect::TensorNameTooLong { bytes: 64 });
    refused(one("t", &[1; 5], F32), tensor("t"), ne_at("t"), Defect::TooManyDimensions { count: 5 });
    let type_at = ne_at("t") + 4 + 8;
    refused(one("t", &[32], 31), tensor("t"), type_at, Defect::RemovedType { id: 31, name: "q4_0_4_4" });
    refused(one("t", &[32], 43), tensor("t"), type_at, Defect::UnknownType { id: 43 });
    let partial = Defect::PartialBlock { ne0: 33, dtype: fathom_gguf::DType::MXFP4 };
    refused(one("t", &[33], MXFP4), tensor("t"), ne_at("t"), partial);
    let huge = vec![1 << 32, 1 << 32];
    let dtype = fathom_gguf::DType::F32;
    refused(one("t", &huge, F32), tensor("t"), ne_at("t"), Defect::ShapeTooLarge { ne: huge.clone(), dtype });
    let negative = vec![u64::MAX];
    refused(one("t", &negative, F32), tensor("t"), ne_at("t"), Defect::ShapeTooLarge { ne: negative.clone(), dtype });
}

#[test]
fn tensor_places() {
    let data = |raw: Raw| raw.pad(32).bytes(&[0; 64]);
    let offset_at = 24 + 8 + 1 + 4 + 8 + 4;
    let one = |ne: u64, offset| data(Raw::file(3, 1, 0).tensor("a", &[ne], F32, offset));
    refused(one(1, 4), tensor("a"), offset_at, Defect::Unaligned { offset: 4, alignment: 32 });
    let offset = u64::MAX - 31;
    refused(one(1, offset), tensor("a"), offset_at, Defect::OffsetOverflow { offset, bytes: 4 });
    refused(one(17, 0), tensor("a"), offset_at, Defect::PastEnd { end: 64 + 68, file_bytes: 128 });
    refused(one(1, 64), tensor("a"), offset_at, Defect::PastEnd { end: 64 + 64 + 4, file_bytes: 128 });

    let second_at = 24 + 2 * (8 + 1 + 4 + 8 + 4 + 8) - 8;
    let two = |name: &str, first, second| {
        data(Raw::file(3, 2, 0).tensor("a", &[9], F32, first).tensor(name, &[1], F32, second))
    };
    refused(two("a", 0, 32), tensor("a"), 24 + 33, Defect::DuplicateTensor);
    refused(two("b", 0, 32), tensor("b"), second_at, Defect::Overlap { other: "a".to_owned() });
    refused(two("b", 0, 0), tensor("b"), second_at, Defect::Overlap { other: "a".to_owned() });
    assert!(File::from_bytes(two("b", 0, 64 - 32 + 32).0).is_err(), "the last tensor is past the end");
}

#[test]
fn order_gaps_and_missing_final_padding_are_accepted() {
    let raw = Raw::file(2, 3, 0)
        .tensor("late", &[3], F32, 64)
        .tensor("early", &[2], F32, 0)
        .tensor("scalar", &[], F32, 32)
        .pad(32)
        .bytes(&[7; 64 + 12]);
    let file = File::from_bytes(raw.0).unwrap();
    assert_eq!(file.version(), 2);
    assert_eq!(file.data(file.tensor("late").unwrap()), [7; 12]);
    assert_eq!(file.tensor("scalar").unwrap().ne, [1]);
}

#[test]
fn a_message_reads_as_a_sentence() {
    let raw = Raw::file(3, 1, 0).tensor("blk.0.attn_q.weight", &[32], 36, 0).pad(32).bytes(&[0; 32]);
    assert_eq!(
        File::from_bytes(raw.0).unwrap_err().to_string(),
        "`memory`: element type 36 (`iq4_nl_4_4`) was removed from the format; convert the model again (tensor \
         `blk.0.attn_q.weight`, byte 63)"
    );
}
