package storage

import (
	"context"
	"crypto/hmac"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
	kjson "sigs.k8s.io/json"

	"countersign/approvals"
	"countersign/gate"
)

// The buckets of the file.
var (
	bucketMeta       = []byte("meta")       // "format" -> the text below, "key" -> what the key makes of a known text
	bucketRecords    = []byte("records")    // seq, big-endian -> the record's JSON bytes
	bucketPayloads   = []byte("payloads")   // seq, big-endian -> the payload that the record commits to
	bucketOperations = []byte("operations") // id -> sealed JSON
	bucketOpen       = []byte("open")       // id of every operation that is not closed -> nothing
	bucketQuestions  = []byte("questions")  // keyed hash of the question's key -> operation id
)

// format is the version of the layout. A file of another format is not opened.
const format = "countersign/1"

const (
	// maxQueue bounds the commits that wait for the writer.
	maxQueue = 1024
	// maxGroup bounds how many commits share one transaction.
	maxGroup = 256
)

// ErrPoisoned says that an earlier commit failed, so that it is not known what
// the file holds. Nothing more is written until the server is started again
// and has read the file anew.
var ErrPoisoned = errors.New("the store takes nothing more after a failed commit; see the server's log, mend the cause and restart")

// ErrLocked says that another process has the file open.
var ErrLocked = errors.New("another process has the file open; is a server running on it already?")

// Store is an open file. It implements gate.Store.
type Store struct {
	db       *bbolt.DB
	seal     *sealer
	queue    chan *commit
	closing  chan struct{}
	writer   sync.WaitGroup
	poisoned atomic.Pointer[error]
}

type commit struct {
	batch gate.Batch
	done  chan error // buffered
}

// Options are what Open may be told.
type Options struct {
	// ReadOnly opens the file without a writer, for looking at a stopped server's log.
	ReadOnly bool
	// MaxBytes is the size at which the file takes no more; 0 is no limit.
	MaxBytes int
}

// Open opens the file, or makes it together with its key (path + ".key", mode
// 0600). Only one process can have it open; another gets ErrLocked.
func Open(path string, opts Options) (s *Store, err error) {
	defer func() {
		if r := recover(); r != nil { // bbolt's way to report a damaged page
			s, err = nil, fmt.Errorf("opening %s: the file is damaged: %v", path, r)
		}
	}()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:      time.Second,
		FreelistType: bbolt.FreelistMapType,
		ReadOnly:     opts.ReadOnly,
		MaxSize:      opts.MaxBytes,
	})
	if errors.Is(err, bbolterrors.ErrTimeout) {
		return nil, fmt.Errorf("opening %s: %w", path, ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	s = &Store{db: db, queue: make(chan *commit, maxQueue), closing: make(chan struct{})}
	if err := s.prepare(path, opts.ReadOnly); err != nil {
		db.Close()
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	if !opts.ReadOnly {
		s.writer.Go(s.write)
	}
	return s, nil
}

func (s *Store) prepare(path string, readOnly bool) error {
	var fresh bool
	err := s.db.View(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		if meta == nil {
			if name, _ := tx.Cursor().First(); name != nil {
				return errors.New("this is a bbolt file, but not one of Countersign's")
			}
			fresh = true
			return nil
		}
		if got := string(meta.Get([]byte("format"))); got != format {
			return fmt.Errorf("the file has format %q; this version reads %q", got, format)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if fresh && readOnly {
		return errors.New("the file holds no log")
	}
	if s.seal, err = openKey(path+".key", fresh); err != nil {
		return err
	}
	keyCheck := s.seal.mac("key check")
	if !fresh {
		return s.db.View(func(tx *bbolt.Tx) error {
			if !hmac.Equal(tx.Bucket(bucketMeta).Get([]byte("key")), keyCheck) {
				return fmt.Errorf("the store's key %s.key is not the one that the file was made with; put back the right one", path)
			}
			return nil
		})
	}
	return s.db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketRecords, bucketPayloads, bucketOperations, bucketOpen, bucketQuestions} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		if err := tx.Bucket(bucketMeta).Put([]byte("key"), keyCheck); err != nil {
			return err
		}
		return tx.Bucket(bucketMeta).Put([]byte("format"), []byte(format))
	})
}

// Close stops the writer after what has queued, and closes the file. No Commit
// may be under way or follow.
func (s *Store) Close() error {
	close(s.closing)
	s.writer.Wait()
	return s.db.Close()
}

// Key derives a key for one purpose from the store's own; it is the same after
// a restart.
func (s *Store) Key(purpose string) []byte { return s.seal.derive(purpose) }

// Healthy returns the error that poisoned the store, or nil.
func (s *Store) Healthy() error {
	if p := s.poisoned.Load(); p != nil {
		return fmt.Errorf("%w: %w", ErrPoisoned, *p)
	}
	return nil
}

// Commit implements gate.Store.
func (s *Store) Commit(ctx context.Context, b gate.Batch) error {
	if err := s.Healthy(); err != nil {
		return err
	}
	c := &commit{batch: b, done: make(chan error, 1)}
	select {
	case s.queue <- c:
	case <-ctx.Done():
		return ctx.Err() // not queued, so not stored
	}
	// Once queued it will be stored: the caller waits for that even when its
	// client has gone, because what follows depends on it.
	return <-c.done
}

// write is the one writer. It commits whatever has queued in one transaction,
// with no delay added: while one commit syncs, the next ones gather.
func (s *Store) write() {
	for {
		select {
		case c := <-s.queue:
			s.commit(s.gather(c))
		case <-s.closing:
			for len(s.queue) > 0 {
				s.commit(s.gather(<-s.queue))
			}
			return
		}
	}
}

func (s *Store) gather(first *commit) []*commit {
	group := []*commit{first}
	for len(group) < maxGroup {
		select {
		case c := <-s.queue:
			group = append(group, c)
		default:
			return group
		}
	}
	return group
}

func (s *Store) commit(group []*commit) {
	outcomes := make([]error, len(group))
	err := s.Healthy()
	if err == nil {
		err = s.db.Update(func(tx *bbolt.Tx) error {
			for i, c := range group {
				conflict, err := s.put(tx, &c.batch)
				if err != nil {
					return err
				}
				outcomes[i] = conflict
			}
			return nil
		})
		if err != nil {
			// bbolt can report an error for a transaction that is on the disk all
			// the same, so nothing may be assumed either way.
			cause := err
			s.poisoned.CompareAndSwap(nil, &cause)
			err = s.Healthy()
		}
	}
	for i, c := range group {
		if err != nil {
			c.done <- err
		} else {
			c.done <- outcomes[i]
		}
	}
}

// put writes one batch into the transaction. A conflict is found before
// anything is written, so that the others of the group are not touched by it.
func (s *Store) put(tx *bbolt.Tx, b *gate.Batch) (conflict, err error) {
	operations, open := tx.Bucket(bucketOperations), tx.Bucket(bucketOpen)
	for _, op := range b.Operations {
		stored, err := s.load(operations, op.ID)
		if err != nil && !errors.Is(err, gate.ErrNotFound) {
			return nil, err
		}
		if stored.Revision+1 != op.Revision {
			return fmt.Errorf("%w: operation %s is at revision %d", gate.ErrConflict, op.ID, stored.Revision), nil
		}
	}
	if q := b.Question; q != nil {
		key := s.seal.mac(q.Key)
		if string(tx.Bucket(bucketQuestions).Get(key)) != q.Was {
			return fmt.Errorf("%w: the same question has been asked", gate.ErrConflict), nil
		}
		if err := tx.Bucket(bucketQuestions).Put(key, []byte(q.Op)); err != nil {
			return nil, err
		}
	}
	for _, op := range b.Operations {
		data, err := json.Marshal(op)
		if err != nil {
			return nil, fmt.Errorf("encoding operation %s: %w", op.ID, err)
		}
		if err := operations.Put([]byte(op.ID), s.seal.seal(op.ID, data)); err != nil {
			return nil, err
		}
		if op.State.Open() {
			err = open.Put([]byte(op.ID), nil)
		} else {
			err = open.Delete([]byte(op.ID))
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, appendEntries(tx, b.Entries)
}

func appendEntries(tx *bbolt.Tx, entries []gate.Entry) error {
	records, payloads := tx.Bucket(bucketRecords), tx.Bucket(bucketPayloads)
	records.FillPercent, payloads.FillPercent = 0.95, 0.95 // keys only grow
	for _, e := range entries {
		seq, err := records.NextSequence()
		if err != nil {
			return err
		}
		e.Record.Seq = seq
		data, err := json.Marshal(e.Record)
		if err != nil {
			return fmt.Errorf("encoding record %s: %w", e.Record.ID, err)
		}
		key := binary.BigEndian.AppendUint64(nil, seq)
		if err := records.Put(key, data); err != nil {
			return err
		}
		if e.Payload != nil {
			if err := payloads.Put(key, e.Payload); err != nil {
				return err
			}
		}
	}
	return nil
}

// Operation implements gate.Store.
func (s *Store) Operation(id string) (op approvals.Operation, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
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
	data, err := s.seal.open(id, sealed)
	if err == nil {
		err = kjson.UnmarshalCaseSensitivePreserveInts(data, &op)
	}
	if err != nil {
		return op, fmt.Errorf("reading operation %s: %w", id, err)
	}
	return op, nil
}

// OpenOperations implements gate.Store.
func (s *Store) OpenOperations() (open []approvals.Operation, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
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
	return s.db.View(func(tx *bbolt.Tx) error {
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
	err = s.db.View(func(tx *bbolt.Tx) error {
		op = string(tx.Bucket(bucketQuestions).Get(s.seal.mac(key)))
		return nil
	})
	return op, err
}

// chunk is how many records are read in one transaction. A read that lasts
// keeps the file from reusing pages, so a long one is cut into pieces.
const chunk = 1000

// Records calls f with the exact bytes of every record from seq on, in order,
// until f returns an error. The bytes are valid only during the call.
func (s *Store) Records(from uint64, f func(seq uint64, record []byte) error) error {
	for {
		n := 0
		err := s.db.View(func(tx *bbolt.Tx) error {
			cursor := tx.Bucket(bucketRecords).Cursor()
			for k, v := cursor.Seek(binary.BigEndian.AppendUint64(nil, from)); k != nil && n < chunk; k, v = cursor.Next() {
				seq := binary.BigEndian.Uint64(k)
				if err := f(seq, v); err != nil {
					return err
				}
				from, n = seq+1, n+1
			}
			return nil
		})
		if err != nil || n < chunk {
			return err
		}
	}
}
