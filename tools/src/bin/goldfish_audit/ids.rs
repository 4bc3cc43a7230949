//! Reads the token ids of a file in blocks.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use clap::ValueEnum;
use safetensors::tensor::{Dtype, Metadata};

/// The storage of an id, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    U16,
    U32,
    I32,
    I64,
}

impl Format {
    fn size(self) -> usize {
        match self {
            Format::U16 => 2,
            Format::U32 | Format::I32 => 4,
            Format::I64 => 8,
        }
    }

    fn read(self, bytes: &[u8]) -> i64 {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let unsigned = i64::from_le_bytes(wide);
        match self {
            Format::I32 => i64::from(unsigned as i32),
            _ => unsigned,
        }
    }
}

/// The ids of a file.
pub struct Ids {
    reader: BufReader<File>,
    format: Format,
    len: u64,
    left: u64,
    bytes: Vec<u8>,
}

impl Ids {
    /// The ids of a file that contains only ids from the byte `skip` on.
    pub fn raw(path: &Path, format: Format, skip: u64) -> Result<Ids, String> {
        let file = File::open(path).map_err(|e| e.to_string())?;
        let bytes = file.metadata().map_err(|e| e.to_string())?.len();
        let bytes = bytes
            .checked_sub(skip)
            .ok_or_else(|| format!("it has {bytes} bytes, so {skip} cannot be skipped"))?;
        Ids::new(file, format, skip, bytes)
    }

    /// The ids of a tensor in a safetensors file, of which only the header is read into memory.
    pub fn safetensors(path: &Path, name: Option<&str>) -> Result<Ids, String> {
        let mut file = File::open(path).map_err(|e| e.to_string())?;
        let bytes = file.metadata().map_err(|e| e.to_string())?.len();
        let no_header = |e: &dyn std::fmt::Display| {
            format!(
                "not a safetensors file ({e}); say with --dtype how the ids of a .bin file are stored"
            )
        };
        let mut header = vec![0; 8];
        file.read_exact(&mut header).map_err(|e| no_header(&e))?;
        let len = u64::from_le_bytes(header[..].try_into().expect("8 bytes"));
        // This is the limit of the format.
        if len > bytes - 8 || len > 100_000_000 {
            return Err(no_header(&"its header would be longer than it"));
        }
        header.resize(8 + len as usize, 0);
        file.read_exact(&mut header[8..])
            .map_err(|e| no_header(&e))?;
        let metadata: Metadata = serde_json::from_slice(&header[8..]).map_err(|e| no_header(&e))?;
        let mut tensors = metadata.tensors().into_iter().collect::<Vec<_>>();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let names = || {
            let names: Vec<_> = tensors.iter().map(|(name, _)| name.as_str()).collect();
            names.join(", ")
        };
        let info = match name {
            Some(name) => tensors.iter().find(|(other, _)| other == name),
            None if tensors.len() == 1 => tensors.first(),
            None => {
                return Err(format!(
                    "choose one of its tensors with --tensor: {}",
                    names()
                ));
            }
        };
        let (name, info) = info.ok_or_else(|| {
            format!(
                "no tensor {} (it has: {})",
                name.unwrap_or_default(),
                names()
            )
        })?;
        let format = match info.dtype {
            Dtype::U16 => Format::U16,
            Dtype::U32 => Format::U32,
            Dtype::I32 => Format::I32,
            Dtype::I64 => Format::I64,
            other => {
                return Err(format!(
                    "{name} is {other:?}; it must be U16, U32, I32 or I64"
                ));
            }
        };
        if info.data_offsets.1 as u64 > bytes - 8 - len {
            return Err(format!("it ends before {name} does"));
        }
        let start = 8 + len + info.data_offsets.0 as u64;
        let of_tensor = (info.data_offsets.1 - info.data_offsets.0) as u64;
        Ids::new(file, format, start, of_tensor)
    }

    fn new(mut file: File, format: Format, start: u64, bytes: u64) -> Result<Ids, String> {
        let size = format.size() as u64;
        if bytes == 0 {
            return Err("it holds no ids".to_owned());
        }
        if !bytes.is_multiple_of(size) {
            return Err(format!(
                "{bytes} bytes are not a whole number of ids of {size} bytes"
            ));
        }
        file.seek(SeekFrom::Start(start))
            .map_err(|e| e.to_string())?;
        Ok(Ids {
            reader: BufReader::with_capacity(1 << 20, file),
            format,
            len: bytes / size,
            left: bytes / size,
            bytes: Vec::new(),
        })
    }

    /// The number of ids.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The next ids, at most `most`; empty at the end.
    pub fn next(&mut self, most: usize) -> Result<Vec<i64>, String> {
        let count = self.left.min(most as u64);
        self.left -= count;
        self.bytes.resize(count as usize * self.format.size(), 0);
        let read = self.reader.read_exact(&mut self.bytes);
        read.map_err(|e| e.to_string())?;
        let ids = self.bytes.chunks_exact(self.format.size());
        Ok(ids.map(|id| self.format.read(id)).collect())
    }
}
