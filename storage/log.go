package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"

	"go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"countersign/audit"
	"countersign/gate"
)

// logEnd is the end of the log as the writer keeps it. Where a commit fails it is
// ahead of the file: it is read anew, or the poisoned store makes no more use of it.
type logEnd struct {
	tree   audit.Tree
	block  block  // of the index, not full yet
	signed uint64 // the size that the stored checkpoint is of
}

// line is an entry as it will be stored, but for its number.
type line struct{ leaf, payload []byte }

// encode does what can be done before the writer has its turn.
func encode(entries []gate.Entry) ([]line, error) {
	lines := make([]line, len(entries))
	for i, e := range entries {
		e.Record.Seq = 0
		leaf, err := audit.Leaf(&e.Record)
		if err != nil {
			return nil, err
		}
		lines[i].leaf = leaf
		if e.Payload != nil {
			lines[i].payload = audit.Pack(e.Payload)
		}
	}
	return lines, nil
}

func seqKey(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }

// begin makes an empty log.
func (s *Store) begin(tx *bbolt.Tx) error {
	s.log.block = newBlock()
	if err := tx.Bucket(bucketMeta).Put([]byte("verifier"), []byte(s.signer.public)); err != nil {
		return err
	}
	return s.putCheckpoint(tx)
}

// takeUp finds the end of the log, and refuses one whose end is not what was signed:
// whatever happened to it, it must not be signed anew.
func (s *Store) takeUp(tx *bbolt.Tx) error {
	meta := tx.Bucket(bucketMeta)
	if public := meta.Get([]byte("verifier")); string(public) != s.signer.public {
		return fmt.Errorf("the key audit.key beside the store is not the one that the log was begun with (%s); put back the right one", public)
	}
	size := tx.Bucket(bucketRecords).Sequence()
	edge, err := readHashes(tx, audit.EdgeIndexes(size))
	var signed audit.Checkpoint
	if err == nil {
		s.log.tree = audit.NewTree(size, edge)
		signed, err = audit.OpenCheckpoint(meta.Get([]byte("checkpoint")), s.signer.verifier)
	}
	if err == nil && (signed.Size != size || signed.Root != s.log.tree.Root()) {
		err = fmt.Errorf("it has %d records, and the signed checkpoint is of %d", size, signed.Size)
		if signed.Size == size {
			err = errors.New("its hashes are not what was signed")
		}
	}
	if last, _ := tx.Bucket(bucketRecords).Cursor().Last(); err == nil && size > 0 && !bytes.Equal(last, seqKey(size)) {
		err = errors.New("its newest record is missing")
	}
	if err != nil {
		return fmt.Errorf("the audit log is not as this server left it: %w; countersign audit verify says more, and a copy from before is what to go on with", err)
	}
	s.log.signed, s.log.block = size, lastBlock(tx, size)
	return nil
}

// append adds entries to the log.
func (s *Store) append(tx *bbolt.Tx, entries []gate.Entry, lines []line) error {
	records, hashes := tx.Bucket(bucketRecords), tx.Bucket(bucketHashes)
	payloads, sealed := tx.Bucket(bucketPayloads), tx.Bucket(bucketSealed)
	for _, b := range []*bbolt.Bucket{records, hashes, payloads, sealed} {
		b.FillPercent = 0.95 // keys only grow
	}
	for i, e := range entries {
		seq, err := records.NextSequence()
		if err != nil {
			return err
		}
		key, leaf := seqKey(seq), audit.Number(lines[i].leaf, seq)
		known := s.log.tree.Append(leaf)
		packed := make([]byte, 0, len(known)*tlog.HashSize)
		for _, h := range known {
			packed = append(packed, h[:]...)
		}
		if err := errors.Join(records.Put(key, leaf), hashes.Put(key, packed)); err != nil {
			return err
		}
		if lines[i].payload != nil {
			if err := payloads.Put(key, lines[i].payload); err != nil {
				return err
			}
		}
		if e.Sealed != nil {
			if err := sealed.Put(key, e.Sealed); err != nil {
				return err
			}
		}
		if c := e.Record.Checkpoint; c != nil {
			if err := tx.Bucket(bucketCheckpoints).Put(seqKey(c.Size), []byte(c.Note)); err != nil {
				return err
			}
		}
		if p := e.Record.Pruned; p != nil {
			if err := prune(tx, p); err != nil {
				return err
			}
		}
		s.log.block.add(&e.Record, leaf)
		if seq%blockRecords == 0 {
			if err := tx.Bucket(bucketIndex).Put(blockKey(seq), s.log.block); err != nil {
				return err
			}
			s.log.block = newBlock() // bbolt reads the full one until the commit
		}
	}
	return nil
}

// sign ends a transaction that may have added records.
func (s *Store) sign(tx *bbolt.Tx) error {
	if s.log.tree.Size() == s.log.signed {
		return nil
	}
	return s.putCheckpoint(tx)
}

func (s *Store) putCheckpoint(tx *bbolt.Tx) error {
	tree := &s.log.tree
	signed, err := audit.Checkpoint{Origin: s.signer.Name(), Size: tree.Size(), Root: tree.Root()}.Sign(s.signer)
	if err != nil {
		return fmt.Errorf("signing the log: %w", err)
	}
	s.log.signed = tree.Size()
	return tx.Bucket(bucketMeta).Put([]byte("checkpoint"), signed)
}

// Checkpoint is the newest checkpoint of the log, signed. It is of every record
// that Commit has returned for.
func (s *Store) Checkpoint() (signed []byte, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		signed = slices.Clone(tx.Bucket(bucketMeta).Get([]byte("checkpoint")))
		return nil
	})
	return signed, err
}

// Checkpoints are those that were anchored, by size.
func (s *Store) Checkpoints() (signed [][]byte, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketCheckpoints).ForEach(func(_, v []byte) error {
			signed = append(signed, slices.Clone(v))
			return nil
		})
	})
	return signed, err
}

// PublicKey is the public key of the log, as the file itself says.
func (s *Store) PublicKey() (key string, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		key = string(tx.Bucket(bucketMeta).Get([]byte("verifier")))
		return nil
	})
	return key, err
}

// Verifier checks signatures of PublicKey.
func (s *Store) Verifier() (note.Verifier, error) {
	key, err := s.PublicKey()
	if err != nil {
		return nil, err
	}
	return note.NewVerifier(key)
}

// ReadHashes implements tlog.HashReader.
func (s *Store) ReadHashes(indexes []int64) (hashes []tlog.Hash, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		hashes, err = readHashes(tx, indexes)
		return err
	})
	return hashes, err
}

func readHashes(tx *bbolt.Tx, indexes []int64) ([]tlog.Hash, error) {
	bucket := tx.Bucket(bucketHashes)
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		level, n := tlog.SplitStoredHashIndex(index)
		leaf := uint64(n+1) << level // the seq of the leaf that completed it
		packed := bucket.Get(seqKey(leaf))
		if len(packed) != (bits.TrailingZeros64(leaf)+1)*tlog.HashSize {
			return nil, fmt.Errorf("the hashes of record %d are missing", leaf)
		}
		hashes[i] = tlog.Hash(packed[level*tlog.HashSize:])
	}
	return hashes, nil
}

// Payload is the masked payload that a record commits to, gate.ErrNotFound where
// there is none.
func (s *Store) Payload(seq uint64) (payload []byte, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		packed := tx.Bucket(bucketPayloads).Get(seqKey(seq))
		if packed == nil {
			return fmt.Errorf("the payload of record %d: %w", seq, gate.ErrNotFound)
		}
		if payload, err = audit.Unpack(packed); err != nil {
			return fmt.Errorf("the payload of record %d is damaged: %w", seq, err)
		}
		return nil
	})
	return payload, err
}

// SealedPayload is the unmasked payload of a record, encrypted for the auditors.
func (s *Store) SealedPayload(seq uint64) (sealed []byte, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		if sealed = slices.Clone(tx.Bucket(bucketSealed).Get(seqKey(seq))); sealed == nil {
			return fmt.Errorf("the sealed payload of record %d: %w", seq, gate.ErrNotFound)
		}
		return nil
	})
	return sealed, err
}

// Head is the newest record and its sequence number, 0 where there is none.
func (s *Store) Head() (seq uint64, record []byte, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		k, v := tx.Bucket(bucketRecords).Cursor().Last()
		if k != nil {
			seq, record = binary.BigEndian.Uint64(k), slices.Clone(v)
		}
		return nil
	})
	return seq, record, err
}

// Records calls f with the exact bytes of every record from seq on, in order,
// until f returns an error. The bytes are valid only during the call.
func (s *Store) Records(from uint64, f func(seq uint64, record []byte) error) error {
	return s.Search(&audit.Query{}, from, 0, false, f)
}

// news tells those who follow the log that it has grown.
type news struct {
	mu   sync.Mutex
	next chan struct{} // nil while nobody waits
}

// Committed returns a channel that is closed after the next commit. Who takes it
// before looking at the log misses nothing.
func (s *Store) Committed() <-chan struct{} {
	s.news.mu.Lock()
	defer s.news.mu.Unlock()
	if s.news.next == nil {
		s.news.next = make(chan struct{})
	}
	return s.news.next
}

func (n *news) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next != nil {
		close(n.next)
		n.next = nil
	}
}
