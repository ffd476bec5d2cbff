package storage

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"go.etcd.io/bbolt"

	"countersign/audit"
)

// The index is one Bloom filter for each block of records, with what the records
// of the block are found by: their terms, and every three bytes in a row of their
// text. A search reads the records of those blocks only that could have what it
// looks for. The block that is not full yet has no entry; it is read as it is.
//
// It takes 32 bytes a record and one write in 256, where a list of records for each
// value would take a write for each value of each record.

const (
	// blockRecords is how many records a block has.
	blockRecords = 256
	// filterBits is the size of a block's filter, a power of two.
	filterBits = 1 << 16
	// termBits is how many bits a term sets.
	termBits = 3
)

// block is what the index has of one block: in the file, the oldest and the newest
// time (ns since 1970, big-endian) and the filter.
type block []byte

const blockHead = 16

func newBlock() block {
	b := make(block, blockHead+filterBits/8)
	binary.BigEndian.PutUint64(b, 1<<63-1)
	return b
}

func blockKey(seq uint64) []byte {
	return binary.BigEndian.AppendUint64(nil, (seq-1)/blockRecords)
}

func (b block) add(r *audit.Record, leaf []byte) {
	at := nanos(r.Time)
	binary.BigEndian.PutUint64(b, min(at, binary.BigEndian.Uint64(b)))
	binary.BigEndian.PutUint64(b[8:], max(at, binary.BigEndian.Uint64(b[8:])))
	set := func(bit uint32) { b[blockHead+bit/8] |= 1 << (bit % 8) }
	for _, term := range r.Terms() {
		for _, bit := range bitsOf(term) {
			set(bit)
		}
	}
	trigrams(audit.Lower(leaf), set)
}

// nanos is a time in ns since 1970; times before count as 1970.
func nanos(t time.Time) uint64 {
	if t.Year() < 1970 {
		return 0
	}
	return uint64(t.UnixNano())
}

func bitsOf(term string) (bits [termBits]uint32) {
	h := fnv.New64a()
	h.Write([]byte(term))
	sum := h.Sum64()
	for i := range bits {
		bits[i] = uint32(sum>>(20*i)) % filterBits
	}
	return bits
}

func trigrams(text []byte, f func(bit uint32)) {
	if len(text) < 3 {
		return
	}
	last := uint32(text[0])<<8 | uint32(text[1])
	for _, c := range text[2:] {
		last = (last<<8 | uint32(c)) & 0xffffff
		f(last * 0x9e3779b1 >> 16)
	}
}

// wanted is a query as the index understands it.
type wanted struct {
	bits         []uint32
	since, until uint64
}

func want(q *audit.Query) wanted {
	w := wanted{until: 1<<63 - 1}
	for _, term := range q.Terms() {
		bits := bitsOf(term)
		w.bits = append(w.bits, bits[:]...)
	}
	trigrams(q.Needle(), func(bit uint32) { w.bits = append(w.bits, bit) })
	if !q.Since.IsZero() {
		w.since = nanos(q.Since)
	}
	if !q.Until.IsZero() {
		w.until = nanos(q.Until)
	}
	return w
}

// may reports whether the block can have a record that is wanted.
func (w *wanted) may(b block) bool {
	if len(b) != blockHead+filterBits/8 {
		return true // it is not ours; the records themselves say
	}
	if binary.BigEndian.Uint64(b[8:]) < w.since || binary.BigEndian.Uint64(b) > w.until {
		return false
	}
	for _, bit := range w.bits {
		if b[blockHead+bit/8]&(1<<(bit%8)) == 0 {
			return false
		}
	}
	return true
}

// Search calls f with the exact bytes of every record that the query is about, of
// those with sequence numbers from..to, both included; to 0 is the newest. They come
// in order, or the newest first. It ends when f returns an error, which it returns.
// The bytes are valid only during the call. While f runs no transaction is open, so
// that f may be slow: one that lasts can keep the writer waiting.
func (s *Store) Search(q *audit.Query, from, to uint64, newestFirst bool, f func(seq uint64, record []byte) error) error {
	if q.Until.Year() > 2262 || q.Since.Year() > 2262 {
		return errors.New("searching: a time after 2262 cannot be looked for")
	}
	head, _, err := s.Head()
	if err != nil {
		return err
	}
	if to == 0 || to > head {
		to = head
	}
	from = max(from, 1)
	if head == 0 || from > to {
		return nil
	}
	w, all := want(q), *q == audit.Query{}
	var found found
	first, last := (from-1)/blockRecords, (to-1)/blockRecords
	for n := first; n <= last; n++ {
		number := n
		if newestFirst {
			number = last - (n - first)
		}
		// One transaction a block that is read, so that none lasts; blocks that are
		// passed over are passed over within it.
		found.clear()
		err := s.view(func(tx *bbolt.Tx) error {
			index := tx.Bucket(bucketIndex)
			for {
				b := index.Get(binary.BigEndian.AppendUint64(nil, number))
				if b == nil || all || w.may(b) { // an export of all does not rely on the index
					break
				}
				if n++; n > last {
					return nil
				}
				if number = n; newestFirst {
					number = last - (n - first)
				}
			}
			return searchBlock(tx, q, max(from, number*blockRecords+1), min(to, (number+1)*blockRecords), newestFirst, found.add)
		})
		if failed := found.each(f); failed != nil {
			return failed
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// found are copies of records of one block.
type found struct {
	seqs  []uint64
	ends  []int // of each in bytes
	bytes []byte
}

func (r *found) clear() { r.seqs, r.ends, r.bytes = r.seqs[:0], r.ends[:0], r.bytes[:0] }

func (r *found) add(seq uint64, record []byte) {
	r.bytes = append(r.bytes, record...)
	r.seqs, r.ends = append(r.seqs, seq), append(r.ends, len(r.bytes))
}

func (r *found) each(f func(seq uint64, record []byte) error) error {
	start := 0
	for i, seq := range r.seqs {
		if err := f(seq, r.bytes[start:r.ends[i]:r.ends[i]]); err != nil {
			return err
		}
		start = r.ends[i]
	}
	return nil
}

func searchBlock(tx *bbolt.Tx, q *audit.Query, from, to uint64, newestFirst bool, add func(seq uint64, record []byte)) error {
	cursor := tx.Bucket(bucketRecords).Cursor()
	key := func(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }
	k, v := cursor.Seek(key(from))
	next := cursor.Next
	if newestFirst {
		if k, v = cursor.Seek(key(to)); k == nil {
			k, v = cursor.Last()
		}
		next = cursor.Prev
	}
	for ; k != nil; k, v = next() {
		seq := binary.BigEndian.Uint64(k)
		switch {
		case newestFirst && seq > to, !newestFirst && seq < from:
			continue
		case newestFirst && seq < from, !newestFirst && seq > to:
			return nil
		}
		matches, err := q.Match(v)
		if err != nil {
			return fmt.Errorf("record %d cannot be read: %w", seq, err)
		}
		if matches {
			add(seq, v)
		}
	}
	return nil
}

// lastBlock is the block that is not full yet, made anew from its records.
func lastBlock(tx *bbolt.Tx, size uint64) block {
	b := newBlock()
	cursor := tx.Bucket(bucketRecords).Cursor()
	first := size/blockRecords*blockRecords + 1
	for k, v := cursor.Seek(binary.BigEndian.AppendUint64(nil, first)); k != nil; k, v = cursor.Next() {
		r := audit.Record{Time: time.Unix(0, 0)}
		if json.Unmarshal(v, &r) == nil { // what is damaged is for verify to report
			b.add(&r, v)
		}
	}
	return b
}
