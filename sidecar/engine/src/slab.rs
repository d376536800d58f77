//! Slots with stable numbers, and doubly linked lists through them: the one container under L1's recency list, L2's
//! eviction queues and L2's timer wheel. A slot has `LINKS` pairs of links, so it can be in that many lists at once.
//!
//! Grows by small chunks, so that nothing is ever copied and little is unused; allocates only to grow. No `unsafe`, the
//! links are indices.

pub(crate) const NIL: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Link {
    prev: u32,
    next: u32,
}

const UNLINKED: Link = Link { prev: NIL, next: NIL };

#[derive(Debug)]
pub(crate) struct Slot<T, const LINKS: usize> {
    links: [Link; LINKS],
    item: Option<T>,
}

#[derive(Debug)]
pub(crate) struct Slab<T, const LINKS: usize> {
    chunks: Vec<Box<[Slot<T, LINKS>; CHUNK]>>,
    /// Slots ever used: those before it are in use or in the free list.
    span: u32,
    free: u32,
}

const CHUNK_BITS: u32 = 6;
const CHUNK: usize = 1 << CHUNK_BITS;

const fn place(index: u32) -> (usize, usize) {
    ((index >> CHUNK_BITS) as usize, index as usize & (CHUNK - 1))
}

impl<T, const LINKS: usize> Slab<T, LINKS> {
    pub(crate) const fn new() -> Self {
        Self { chunks: Vec::new(), span: 0, free: NIL }
    }

    pub(crate) fn insert(&mut self, item: T) -> u32 {
        let index = if self.free == NIL {
            if self.growth() > 0 {
                let empty = |_| Slot { links: [UNLINKED; LINKS], item: None };
                self.chunks.push(Box::new(std::array::from_fn(empty)));
            }
            self.span += 1;
            self.span - 1
        } else {
            let index = self.free;
            self.free = self.slot_mut(index).links[0].next;
            index
        };
        *self.slot_mut(index) = Slot { links: [UNLINKED; LINKS], item: Some(item) };
        index
    }

    /// The slot must have been unlinked from every list.
    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        let free = self.free;
        let slot = self.slot_mut(index);
        let item = slot.item.take()?;
        slot.links[0].next = free;
        self.free = index;
        Some(item)
    }

    #[inline]
    pub(crate) fn item(&self, index: u32) -> Option<&T> {
        let (chunk, at) = place(index);
        self.chunks.get(chunk)?[at].item.as_ref()
    }

    #[inline]
    pub(crate) fn item_mut(&mut self, index: u32) -> Option<&mut T> {
        let (chunk, at) = place(index);
        self.chunks.get_mut(chunk)?[at].item.as_mut()
    }

    #[inline]
    fn slot_mut(&mut self, index: u32) -> &mut Slot<T, LINKS> {
        let (chunk, at) = place(index);
        &mut self.chunks[chunk][at]
    }

    /// One past the highest slot ever used; for scans in slices.
    pub(crate) const fn span(&self) -> u32 {
        self.span
    }

    /// Bytes allocated.
    pub(crate) fn bytes(&self) -> usize {
        self.chunks.len() * Self::CHUNK_BYTES + self.chunks.capacity() * size_of::<usize>()
    }

    /// Bytes that the next insertion would allocate: a chunk, and perhaps a longer list of chunks beside the old one.
    pub(crate) fn growth(&self) -> usize {
        if self.has_free() || (self.span >> CHUNK_BITS) < self.chunks.len() as u32 {
            return 0;
        }
        let list = if self.chunks.len() == self.chunks.capacity() { (2 * self.chunks.len()).max(4) } else { 0 };
        Self::CHUNK_BYTES + list * size_of::<usize>()
    }

    /// Whether the next insertion uses a slot again.
    pub(crate) const fn has_free(&self) -> bool {
        self.free != NIL
    }

    /// Bytes of one slot.
    pub(crate) const SLOT_BYTES: usize = size_of::<Slot<T, LINKS>>();
    const CHUNK_BYTES: usize = CHUNK * Self::SLOT_BYTES;
}

/// A list through link pair `L` of a slab's slots. A slot is in at most one list per pair.
#[derive(Debug)]
pub(crate) struct List<const L: usize> {
    head: u32,
    tail: u32,
    len: u32,
}

impl<const L: usize> List<L> {
    pub(crate) const fn new() -> Self {
        Self { head: NIL, tail: NIL, len: 0 }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len as usize
    }

    #[cfg(test)]
    pub(crate) const fn head(&self) -> Option<u32> {
        if self.head == NIL { None } else { Some(self.head) }
    }

    pub(crate) const fn tail(&self) -> Option<u32> {
        if self.tail == NIL { None } else { Some(self.tail) }
    }

    pub(crate) fn push_front<T, const LINKS: usize>(&mut self, slab: &mut Slab<T, LINKS>, index: u32) {
        slab.slot_mut(index).links[L] = Link { prev: NIL, next: self.head };
        match self.head {
            NIL => self.tail = index,
            head => slab.slot_mut(head).links[L].prev = index,
        }
        self.head = index;
        self.len += 1;
    }

    pub(crate) fn unlink<T, const LINKS: usize>(&mut self, slab: &mut Slab<T, LINKS>, index: u32) {
        let Link { prev, next } = std::mem::replace(&mut slab.slot_mut(index).links[L], UNLINKED);
        match prev {
            NIL => self.head = next,
            prev => slab.slot_mut(prev).links[L].next = next,
        }
        match next {
            NIL => self.tail = prev,
            next => slab.slot_mut(next).links[L].prev = prev,
        }
        self.len -= 1;
    }

    #[inline]
    pub(crate) fn move_to_front<T, const LINKS: usize>(&mut self, slab: &mut Slab<T, LINKS>, index: u32) {
        if self.head != index {
            self.unlink(slab, index);
            self.push_front(slab, index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_keeps_the_order_of_use() {
        let mut slab = Slab::<u8, 2>::new();
        let mut list = List::<1>::new();
        let slots: Vec<u32> = (0..3).map(|item| slab.insert(item)).collect();
        for &slot in &slots {
            list.push_front(&mut slab, slot);
        }
        list.move_to_front(&mut slab, slots[0]);
        assert_eq!((list.head(), list.tail(), list.len()), (Some(slots[0]), Some(slots[1]), 3));
        list.unlink(&mut slab, slots[1]);
        assert_eq!(slab.remove(slots[1]), Some(1));
        assert_eq!(list.tail(), Some(slots[2]));
        assert_eq!(slab.insert(9), slots[1], "a freed slot is used again");
        assert_eq!(slab.span(), 3);
    }
}
