package storage

import (
	"context"
	"encoding/json"
	"fmt"

	"go.etcd.io/bbolt"
	kjson "sigs.k8s.io/json"

	"countersign/approvals"
	"countersign/gate"
)

// Operation implements gate.Store.
func (s *Store) Operation(id string) (op approvals.Operation, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		op, err = s.load(tx.Bucket(bucketOperations), id)
		return err
	})
	return op, err
}

func (s *Store) load(operations *bbolt.Bucket, id string) (op approvals.Operation, err error) {
	sealed := operations.Get([]byte(id))
	if sealed == nil {
		return op, fmt.Errorf("operation %s: %w", id, gate.ErrNotFound)
	}
	err = s.unseal(id, sealed, &op)
	return op, err
}

// OpenOperations implements gate.Store.
func (s *Store) OpenOperations() (open []approvals.Operation, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketOpen).ForEach(func(id, _ []byte) error {
			op, err := s.load(tx.Bucket(bucketOperations), string(id))
			open = append(open, op)
			return err
		})
	})
	return open, err
}

// Operations implements gate.Store.
func (s *Store) Operations(f func(approvals.Operation) bool) error {
	return s.view(func(tx *bbolt.Tx) error {
		operations := tx.Bucket(bucketOperations)
		cursor := operations.Cursor()
		for id, _ := cursor.Last(); id != nil; id, _ = cursor.Prev() {
			op, err := s.load(operations, string(id))
			if err != nil || !f(op) {
				return err
			}
		}
		return nil
	})
}

// Question implements gate.Store.
func (s *Store) Question(key string) (op string, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		op = string(tx.Bucket(bucketQuestions).Get(s.seal.mac(key)))
		return nil
	})
	return op, err
}

func (s *Store) loadGrant(tx *bbolt.Tx, id []byte) (g approvals.Grant, err error) {
	sealed := tx.Bucket(bucketGrants).Get(id)
	if sealed == nil {
		return g, fmt.Errorf("grant %s: %w", id, gate.ErrNotFound)
	}
	err = s.unseal(grantPrefix+string(id), sealed, &g)
	return g, err
}

// unseal reads what was sealed under a name.
func (s *Store) unseal(name string, sealed []byte, v any) error {
	data, err := s.seal.open(name, sealed)
	if err == nil {
		err = kjson.UnmarshalCaseSensitivePreserveInts(data, v)
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	return nil
}

// Grants implements gate.Store.
func (s *Store) Grants() (grants []approvals.Grant, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketGrants).ForEach(func(id, _ []byte) error {
			g, err := s.loadGrant(tx, id)
			grants = append(grants, g)
			return err
		})
	})
	return grants, err
}

// Locks implements gate.Store.
func (s *Store) Locks() (locks []approvals.Lock, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketLocks).ForEach(func(id, sealed []byte) error {
			var l approvals.Lock
			err := s.unseal(lockPrefix+string(id), sealed, &l)
			locks = append(locks, l)
			return err
		})
	})
	return locks, err
}

// Untold lists operations that a messenger shows otherwise than they are, or not
// at all: the oldest first, at most so many, without those to skip.
func (s *Store) Untold(most int, skip func(id string) bool) (ids []string, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		cursor := tx.Bucket(bucketUntold).Cursor()
		for id, _ := cursor.First(); id != nil && len(ids) < most; id, _ = cursor.Next() {
			if id := string(id); !skip(id) {
				ids = append(ids, id)
			}
		}
		return nil
	})
	return ids, err
}

// More holds an item when Untold may give others than before.
func (s *Store) More() <-chan struct{} { return s.untold }

// Delivery is what a messenger has been told of an operation; zero when nothing.
func (s *Store) Delivery(id string) (d approvals.Delivery, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		data := tx.Bucket(bucketDeliveries).Get([]byte(id))
		if data == nil {
			return nil
		}
		return json.Unmarshal(data, &d)
	})
	d.Op = id
	return d, err
}

// Delivered stores what a messenger has been told.
func (s *Store) Delivered(ctx context.Context, d approvals.Delivery) error {
	return s.Commit(ctx, gate.Batch{Deliveries: []approvals.Delivery{d}})
}
