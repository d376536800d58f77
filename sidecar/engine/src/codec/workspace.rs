//! One thread's compressors and their scratch memory.
//!
//! Owns all calls into the compression libraries. Contexts are costly to make and cheap to reuse, so each thread that
//! compresses keeps one of each, and a scratch buffer that is given back when a large value blew it up. Output never
//! exceeds the capacity that a caller gave. Fails with the library's own words.

use std::cell::RefCell;

use lz4_flex::block::{self, CompressTable};
use zstd::zstd_safe::{self, CCtx, CDict, DCtx, DDict, DParameter, FrameFormat};

/// A scratch buffer above this is freed after use.
const KEPT_SCRATCH_BYTES: usize = 256 * 1024;
/// `28 B5 2F FD`: every frame begins with it, so it is not stored.
const FRAME_MAGIC_BYTES: usize = 4;

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::new(Workspace::default());
}

#[derive(Default)]
pub(super) struct Workspace {
    lz4: Option<CompressTable>,
    cctx: Option<CCtx<'static>>,
    dctx: Option<DCtx<'static>>,
    scratch: Vec<u8>,
}

/// How ZSTD is to compress.
#[derive(Clone, Copy)]
pub(super) enum Zstd<'a> {
    Level(i32),
    Dictionary(&'a CDict<'static>),
}

/// Runs `work` in this thread's workspace.
pub(super) fn with<T>(work: impl FnOnce(&mut Workspace) -> T) -> T {
    WORKSPACE.with_borrow_mut(|workspace| {
        let result = work(workspace);
        if workspace.scratch.capacity() > KEPT_SCRATCH_BYTES {
            workspace.scratch = Vec::new();
        }
        result
    })
}

impl Workspace {
    /// An LZ4 block, in the scratch buffer; `None` where the library refuses.
    pub(super) fn lz4_compress(&mut self, value: &[u8]) -> Option<&[u8]> {
        let bound = block::get_maximum_output_size(value.len());
        if self.scratch.len() < bound {
            self.scratch.resize(bound, 0);
        }
        // The table for small inputs is the quicker one, but once grown it stays grown.
        if value.len() < usize::from(u16::MAX) && matches!(self.lz4, Some(CompressTable::Large(_))) {
            self.lz4 = None;
        }
        let table = self.lz4.get_or_insert_default();
        let written = block::compress_into_with_table(value, &mut self.scratch, table).ok()?;
        self.scratch.get(..written)
    }

    /// A ZSTD frame without its magic number, in the scratch buffer; `None` where the library refuses.
    pub(super) fn zstd_compress(&mut self, how: Zstd<'_>, value: &[u8]) -> Option<&[u8]> {
        self.scratch.clear();
        self.scratch.reserve(zstd_safe::compress_bound(value.len()));
        let cctx = self.cctx.get_or_insert_with(CCtx::create);
        let written = match how {
            Zstd::Level(level) => cctx.compress(&mut self.scratch, value, level),
            Zstd::Dictionary(dictionary) => cctx.compress_using_cdict(&mut self.scratch, value, dictionary),
        };
        self.scratch.get(FRAME_MAGIC_BYTES..written.ok()?)
    }

    /// Decodes an LZ4 block into exactly as many bytes as `value` has; how many it were.
    pub(super) fn lz4_decompress(payload: &[u8], value: &mut [u8]) -> Result<usize, String> {
        block::decompress_into(payload, value).map_err(|error| error.to_string())
    }

    /// Decodes a frame into the capacity of `value`.
    pub(super) fn zstd_decompress(
        &mut self,
        payload: &[u8],
        dictionary: Option<&DDict<'static>>,
        value: &mut Vec<u8>,
    ) -> Result<usize, String> {
        let words = |code| zstd_safe::get_error_name(code).to_owned();
        let dctx = match &mut self.dctx {
            Some(dctx) => dctx,
            none => {
                let mut dctx = DCtx::create();
                dctx.set_parameter(DParameter::Format(FrameFormat::Magicless)).map_err(words)?;
                none.insert(dctx)
            }
        };
        match dictionary {
            Some(dictionary) => dctx.decompress_using_ddict(value, payload, dictionary),
            None => dctx.decompress(value, payload),
        }
        .map_err(words)
    }
}
