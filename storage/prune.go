package storage

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"

	"countersign/audit"
)

// maxPrune is how many payloads, and how many records, one commit takes out.
const maxPrune = 10_000

// Prunable implements gate.Store.
func (s *Store) Prunable(payloads, records time.Time) (p audit.Pruned, err error) {
	gone, err := s.pruned()
	if err != nil {
		return p, err
	}
	keepPayloads, err := s.since(payloads)
	if err != nil {
		return p, err
	}
	keepRecords, err := s.since(records)
	if err != nil {
		return p, err
	}
	keepPayloads = max(keepPayloads, keepRecords)
	err = s.view(func(tx *bbolt.Tx) error {
		oldest := func(bucket []byte) uint64 {
			if key, _ := tx.Bucket(bucket).Cursor().First(); key != nil {
				return binary.BigEndian.Uint64(key)
			}
			return 1<<63 - 1
		}
		payload, record := min(oldest(bucketPayloads), oldest(bucketSealed)), oldest(bucketRecords)
		if payload >= keepPayloads && record >= keepRecords {
			return nil
		}
		p = audit.Pruned{
			PayloadsBefore: max(gone.PayloadsBefore, min(keepPayloads, payload+maxPrune)),
			RecordsBefore:  max(gone.RecordsBefore, min(keepRecords, record+maxPrune)),
		}
		// What is beside a record goes no later than the record.
		p.PayloadsBefore = max(p.PayloadsBefore, p.RecordsBefore)
		if p.RecordsBefore <= 1 {
			p.RecordsBefore = 0
			return nil
		}
		p.Edge, err = readHashes(tx, audit.EdgeIndexes(p.RecordsBefore-1))
		return err
	})
	return p, err
}

// since is the number of the first record that is not older than a time. The newest
// record stays in any case; the zero time is long ago.
func (s *Store) since(t time.Time) (seq uint64, err error) {
	if t.IsZero() {
		return 0, nil
	}
	if seq, _, err = s.Head(); err != nil {
		return 0, err
	}
	stop := errors.New("found")
	err = s.Search(&audit.Query{Since: t}, 0, 0, false, func(found uint64, _ []byte) error {
		seq = found
		return stop
	})
	if errors.Is(err, stop) {
		err = nil
	}
	return seq, err
}

// prune takes out what the record of it, of the same commit, says. Hashes and
// checkpoints stay. With a record goes its operation, unless it is still open.
func prune(tx *bbolt.Tx, p *audit.Pruned) error {
	before := func(bucket []byte, end uint64, f func(value []byte) error) error {
		cursor := tx.Bucket(bucket).Cursor()
		var keys [][]byte // deleting moves a cursor
		for key, value := cursor.First(); key != nil && binary.BigEndian.Uint64(key) < end; key, value = cursor.Next() {
			if f != nil {
				if err := f(value); err != nil {
					return err
				}
			}
			keys = append(keys, key)
		}
		for _, key := range keys {
			if err := tx.Bucket(bucket).Delete(key); err != nil {
				return err
			}
		}
		return nil
	}
	operations, deliveries, open := tx.Bucket(bucketOperations), tx.Bucket(bucketDeliveries), tx.Bucket(bucketOpen)
	untold := tx.Bucket(bucketUntold)
	return errors.Join(
		before(bucketPayloads, p.PayloadsBefore, nil),
		before(bucketSealed, p.PayloadsBefore, nil),
		before(bucketIndex, p.RecordsBefore/blockRecords, nil), // those of which nothing is left
		before(bucketRecords, p.RecordsBefore, func(leaf []byte) error {
			var r struct {
				Op string `json:"op"`
			}
			if err := json.Unmarshal(leaf, &r); err != nil {
				return fmt.Errorf("a record that is to be taken out is damaged: %w", err)
			}
			id := []byte(r.Op)
			if r.Op == "" || open.Get(id) != nil || untold.Get(id) != nil {
				return nil
			}
			return errors.Join(operations.Delete(id), deliveries.Delete(id))
		}),
	)
}
