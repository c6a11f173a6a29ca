//! The names an ELF file exports, and those it takes from the process that loads it.

use std::fs;
use std::path::Path;

use object::Endianness;
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader, Sym};

/// A name of the dynamic symbol table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Symbol {
    pub name: String,
    /// Defined here, for others; else taken from the process.
    pub exported: bool,
    /// The version required, as in `GLIBC_2.17`.
    pub version: Option<String>,
}

/// The properties of an ELF file for the loader.
#[derive(Debug)]
pub struct Loaded {
    pub symbols: Vec<Symbol>,
    /// The alignment its thread-local variables need together; 0: it has none.
    pub thread_local_alignment: u64,
}

pub fn read(path: &Path) -> Loaded {
    let data = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let data = data.as_slice();
    let header = FileHeader64::<Endianness>::parse(data).unwrap();
    let endian = header.endian().unwrap();
    let sections = header.sections(endian, data).unwrap();
    let table = sections.symbols(endian, data, elf::SHT_DYNSYM).unwrap();
    let versions = sections.versions(endian, data).unwrap();
    let symbols = table.enumerate().filter(|(_, symbol)| symbol.st_bind() != elf::STB_LOCAL).map(|(index, symbol)| {
        let version = versions.as_ref().and_then(|versions| {
            let version = versions.version(versions.version_index(endian, index).into()).unwrap()?;
            Some(String::from_utf8(version.name().to_vec()).unwrap())
        });
        let name = String::from_utf8(symbol.name(endian, table.strings()).unwrap().to_vec()).unwrap();
        Symbol { name, exported: !symbol.is_undefined(endian), version }
    });
    let segments = header.program_headers(endian, data).unwrap();
    let locals = segments.iter().find(|segment| segment.p_type(endian) == elf::PT_TLS);
    Loaded {
        symbols: symbols.filter(|symbol| !symbol.name.is_empty()).collect(),
        thread_local_alignment: locals.map_or(0, |segment| segment.p_align(endian)),
    }
}
