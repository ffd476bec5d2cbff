package storage

import (
	"cmp"
	"context"
	"crypto/hmac"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"countersign/approvals"
	"countersign/gate"
)

// The buckets of the file.
var (
	// "format" -> the text below, "key" -> what the key makes of a known text,
	// "verifier" -> the public key of the log, "checkpoint" -> its newest checkpoint
	bucketMeta        = []byte("meta")
	bucketRecords     = []byte("records")     // seq, big-endian -> the record's JSON bytes, a leaf of the tree
	bucketHashes      = []byte("hashes")      // seq -> the leaf's hash and those of the subtrees that it completes
	bucketCheckpoints = []byte("checkpoints") // size, big-endian -> a checkpoint that was anchored
	bucketPayloads    = []byte("payloads")    // seq -> the masked payload that the record commits to, zstd
	bucketSealed      = []byte("sealed")      // seq -> the unmasked payload, for auditors
	bucketIndex       = []byte("index")       // block of records, big-endian -> what they are found by; see index.go
	bucketOperations  = []byte("operations")  // id -> sealed JSON
	bucketOpen        = []byte("open")        // id of every operation that is not closed -> nothing
	bucketQuestions   = []byte("questions")   // keyed hash of the question's key -> operation id
	bucketGrants      = []byte("grants")      // id -> sealed JSON
	bucketLocks       = []byte("locks")       // id -> sealed JSON
	bucketDeliveries  = []byte("deliveries")  // operation id -> JSON of what a messenger was told
	bucketUntold      = []byte("untold")      // id of every operation that a messenger shows otherwise than it is -> its revision, big-endian
)

// buckets are all of them.
var buckets = [][]byte{
	bucketMeta, bucketRecords, bucketHashes, bucketCheckpoints, bucketPayloads, bucketSealed, bucketIndex, bucketOperations, bucketOpen, bucketQuestions,
	bucketGrants, bucketLocks, bucketDeliveries, bucketUntold,
}

// format is the version of the layout. A file of another format is not opened.
const format = "countersign/2"

const (
	// maxQueue bounds the commits that wait for the writer.
	maxQueue = 1024
	// maxGroup bounds how many commits share one transaction.
	maxGroup = 256
)

// ErrPoisoned says that an earlier commit failed, or that the file is damaged, so
// that it is not known what the file holds. Nothing more is written until the
// server is started again and has read the file anew.
var ErrPoisoned = errors.New("the audit log takes nothing more; mend the cause, see docs/audit.md, and restart the server")

// ErrLocked says that another process has the file open.
var ErrLocked = errors.New("another process has the file open; is a server running on it already?")

// Store is an open file. It implements gate.Store.
type Store struct {
	path string
	opts Options

	mu   sync.RWMutex // of the next two, which reopen replaces
	db   *bbolt.DB
	file *os.File // what db has open

	seal      *sealer
	signer    *signer
	log       logEnd // the writer's own
	news      news
	queue     chan *commit
	closing   chan struct{}
	writer    sync.WaitGroup
	poisoned  atomic.Pointer[error]
	stuck     atomic.Bool // a panic has left locks of db behind
	room      room
	messenger bool
	untold    chan struct{} // holds one when there is something to tell
}

type commit struct {
	batch    gate.Batch
	lines    []line // of batch.Entries
	conflict error
	done     chan error // buffered
}

// Options are what Open may be told.
type Options struct {
	// ReadOnly opens the file without a writer, for looking at a stopped server's log.
	ReadOnly bool
	// MaxBytes is the size at which the file takes no more; 0 is no limit.
	MaxBytes int
	// Log is told when there is no room, and when there is again; nil is nobody.
	Log *slog.Logger
	// Messenger keeps note of what a messenger, such as Slack, has still to be
	// told. Without one the notes would only grow.
	Messenger bool
	// Origin is the name of a log that is begun, as checkpoints have it (C2SP
	// tlog-checkpoint): a URL without its scheme is usual. A log keeps the one that
	// it was begun with.
	Origin string
}

// Open opens the file, or makes it together with its key (path + ".key") and the
// key that signs the log (audit.key, and audit.pub for everybody), both of mode
// 0600. Only one process can have it open; another gets ErrLocked.
func Open(path string, opts Options) (s *Store, err error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	s = &Store{
		path: path, opts: opts, queue: make(chan *commit, maxQueue), closing: make(chan struct{}),
		messenger: opts.Messenger, untold: make(chan struct{}, 1),
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil { // bbolt's way to report a damaged page
			err = fmt.Errorf("opening %s: the file is damaged: %v; put back a copy from before, or begin a new log in another folder", path, r)
		}
		if err != nil && s != nil {
			s.abandon()
			s = nil
		}
	}()
	if err := s.there(); err != nil {
		return s, fmt.Errorf("opening %s: %w", path, err)
	}
	if err := s.open(); err != nil {
		return s, fmt.Errorf("opening %s: %w", path, err)
	}
	if err := s.prepare(path, opts); err != nil {
		s.db.Close()
		return s, fmt.Errorf("opening %s: %w", path, err)
	}
	if err := s.measure(); err != nil {
		s.db.Close()
		return s, fmt.Errorf("opening %s: %w", path, err)
	}
	if !opts.ReadOnly {
		s.writer.Go(s.write)
	}
	return s, nil
}

// there refuses to begin a log where one was: its key would sign two.
func (s *Store) there() error {
	_, err := os.Stat(filepath.Join(filepath.Dir(s.path), "audit.key"))
	if info, errLog := os.Stat(s.path); err == nil && (errors.Is(errLog, fs.ErrNotExist) || errLog == nil && info.Size() == 0) {
		return errors.New("the file is gone or empty, and the key audit.key of its log lies beside it; put back the file, or begin a new log in another folder")
	}
	return nil
}

// open opens the file with bbolt.
func (s *Store) open() error {
	db, err := bbolt.Open(s.path, 0o600, &bbolt.Options{
		Timeout:      time.Second,
		FreelistType: bbolt.FreelistMapType,
		ReadOnly:     s.opts.ReadOnly,
		MaxSize:      s.opts.MaxBytes,
		OpenFile: func(name string, flag int, mode os.FileMode) (f *os.File, err error) {
			f, err = os.OpenFile(name, flag, mode)
			s.file = f
			return f, err
		},
	})
	if errors.Is(err, bbolterrors.ErrTimeout) {
		return ErrLocked
	}
	if err != nil {
		return err
	}
	if s.opts.MaxBytes > 0 { // bbolt stops short of the limit by one step of growth, which is 16 MiB by itself
		db.AllocSize = min(db.AllocSize, s.opts.MaxBytes/64)
	}
	s.db = db
	return nil
}

func (s *Store) prepare(path string, opts Options) error {
	var fresh bool
	err := s.view(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		if meta == nil {
			if name, _ := tx.Cursor().First(); name != nil {
				return errors.New("this is a bbolt file, but not one of Countersign's")
			}
			fresh = true
			return nil
		}
		if got := string(meta.Get([]byte("format"))); got != format {
			return fmt.Errorf("the file has format %q; this version reads %q: begin a new log in another folder, and keep the file with the version that wrote it", got, format)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if fresh && opts.ReadOnly {
		return errors.New("the file holds no log")
	}
	if s.seal, err = openKey(path+".key", fresh); err != nil {
		return err
	}
	keyCheck := s.seal.mac("key check")
	if !fresh {
		err := s.view(func(tx *bbolt.Tx) error {
			if !hmac.Equal(tx.Bucket(bucketMeta).Get([]byte("key")), keyCheck) {
				return fmt.Errorf("the store's key %s.key is not the one that the file was made with; put back the right one", path)
			}
			return nil
		})
		if err != nil || opts.ReadOnly {
			return err
		}
	}
	if s.signer, err = openSigner(filepath.Dir(path), fresh, cmp.Or(opts.Origin, "countersign")); err != nil {
		return err
	}
	if !fresh {
		return s.view(s.takeUp)
	}
	return s.db.Update(func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		if err := s.begin(tx); err != nil {
			return err
		}
		meta := tx.Bucket(bucketMeta)
		return errors.Join(meta.Put([]byte("key"), keyCheck), meta.Put([]byte("format"), []byte(format)))
	})
}

// view runs f in a transaction that reads; f must not wait for anybody, because the
// writer may wait for it. A damaged page is an error, and poisons the store.
func (s *Store) view(f func(tx *bbolt.Tx) error) (err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.stuck.Load() {
		return s.Healthy()
	}
	if err := s.uncut(); err != nil {
		return s.poison(err)
	}
	begun := false
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // a file that was cut is no longer behind its mapping
	defer func() {
		if r := recover(); r != nil {
			// Within f bbolt gives back what it holds; before, it has locked others out.
			if !begun {
				s.stuck.Store(true)
			}
			err = s.poison(fmt.Errorf("reading the audit log: %w: %v", errDamaged, r))
		}
	}()
	return s.db.View(func(tx *bbolt.Tx) error {
		begun = true
		return f(tx)
	})
}

// Close stops the writer after what has queued, and closes the file. No Commit
// may be under way or follow.
func (s *Store) Close() error {
	close(s.closing)
	s.writer.Wait()
	if s.stuck.Load() {
		return s.abandon()
	}
	return s.db.Close()
}

// abandon gives the file up without bbolt, which after a panic would wait for locks
// that nobody gives back.
func (s *Store) abandon() error {
	if s.file == nil {
		return nil
	}
	unix.Flock(int(s.file.Fd()), unix.LOCK_UN) // the mapping that stays would keep it
	return s.file.Close()
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
	lines, err := encode(b.Entries)
	if err != nil {
		return err // nothing was written
	}
	c := &commit{batch: b, lines: lines, done: make(chan error, 1)}
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
// with no delay added where somebody waits: while one commit syncs, the next ones
// gather.
func (s *Store) write() {
	debug.SetPanicOnFault(true) // of this goroutine
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
	// Those whom the last commit has woken get to queue, or every other group would be
	// of one.
	runtime.Gosched()
	group, waited := []*commit{first}, !first.batch.Late
	var moment <-chan time.Time
	for len(group) < maxGroup {
		var c *commit
		select {
		case c = <-s.queue:
		default:
			if waited {
				return group
			}
			// A commit of their own would hold up whoever comes meanwhile.
			if moment == nil {
				moment = time.After(lateBy)
			}
			select {
			case c = <-s.queue:
			case <-moment:
				return group
			case <-s.closing:
				return group
			}
		}
		group, waited = append(group, c), waited || !c.batch.Late
	}
	return group
}

// lateBy is how long a batch that nobody waits for is held back at most. Tests set it.
var lateBy = 20 * time.Millisecond

// crashpoint is where tests end the process; see crash.go.
var crashpoint = func(when string, b *gate.Batch) {}

func (s *Store) commit(group []*commit) {
	for _, c := range group {
		crashpoint("before", &c.batch)
	}
	if full := s.Full(); full != nil && s.Healthy() == nil {
		group = refuse(group, full)
	}
	err := s.transact(group)
	if errors.Is(err, gate.ErrFull) {
		// What ends something may fit without what begins something.
		if ending := refuse(group, err); len(ending) < len(group) {
			group, err = ending, s.transact(ending)
		}
	}
	if s.messenger && slices.ContainsFunc(group, func(c *commit) bool { return slices.ContainsFunc(c.batch.Operations, approvals.Operation.Asked) }) {
		select {
		case s.untold <- struct{}{}:
		default: // it will look for all there is
		}
	}
	s.news.tell()
	for _, c := range group {
		crashpoint("after", &c.batch)
		c.done <- cmp.Or(err, c.conflict)
	}
}

// refuse answers those that begin something, and returns the others.
func refuse(group []*commit, err error) (others []*commit) {
	for _, c := range group {
		if c.batch.Begins() {
			c.done <- err
		} else {
			others = append(others, c)
		}
	}
	return others
}

// transact stores a group in one transaction. ErrFull says that nothing of it was
// stored; any other error poisons the store.
func (s *Store) transact(group []*commit) error {
	if err := s.Healthy(); err != nil || len(group) == 0 {
		return err
	}
	var id int
	before := s.log.tree.Size()
	err := s.update(func(tx *bbolt.Tx) error {
		id = tx.ID()
		for _, c := range group {
			var err error
			if c.conflict, err = s.put(tx, &c.batch, c.lines); err != nil {
				return err
			}
		}
		return s.sign(tx)
	})
	if err == nil {
		err = s.measure()
	} else if lacksRoom(err) {
		s.room.lacks(err, s.opts.Log)
		stored, broken := s.reopen(id, before)
		if broken == nil && !stored {
			return fmt.Errorf("%w: %w", gate.ErrFull, err)
		}
		err = broken
	} else {
		err = fmt.Errorf("writing the audit log: %w", err)
	}
	if err != nil {
		return s.poison(err)
	}
	s.room.took(s.opts.Log)
	return nil
}

// put writes one batch into the transaction. A conflict is found before
// anything is written, so that the others of the group are not touched by it.
func (s *Store) put(tx *bbolt.Tx, b *gate.Batch, lines []line) (conflict, err error) {
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
	for _, grant := range b.Grants {
		stored, err := s.loadGrant(tx, []byte(grant.ID))
		if err != nil && !errors.Is(err, gate.ErrNotFound) {
			return nil, err
		}
		if stored.Revision+1 != grant.Revision {
			return fmt.Errorf("%w: grant %s is at revision %d", gate.ErrConflict, grant.ID, stored.Revision), nil
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
		if err == nil && s.messenger && op.Asked() {
			err = tx.Bucket(bucketUntold).Put([]byte(op.ID), binary.BigEndian.AppendUint64(nil, op.Revision))
		}
		if err != nil {
			return nil, err
		}
	}
	for _, grant := range b.Grants {
		data, err := json.Marshal(grant)
		if err == nil {
			err = tx.Bucket(bucketGrants).Put([]byte(grant.ID), s.seal.seal(grantPrefix+grant.ID, data))
		}
		if err != nil {
			return nil, fmt.Errorf("storing grant %s: %w", grant.ID, err)
		}
	}
	for _, id := range b.EndedGrants {
		if err := tx.Bucket(bucketGrants).Delete([]byte(id)); err != nil {
			return nil, err
		}
	}
	for _, l := range b.Locks {
		data, err := json.Marshal(l)
		if err == nil {
			err = tx.Bucket(bucketLocks).Put([]byte(l.ID), s.seal.seal(lockPrefix+l.ID, data))
		}
		if err != nil {
			return nil, fmt.Errorf("storing lock %s: %w", l.ID, err)
		}
	}
	for _, id := range b.Unlocks {
		if err := tx.Bucket(bucketLocks).Delete([]byte(id)); err != nil {
			return nil, err
		}
	}
	for _, d := range b.Deliveries {
		if err := deliver(tx, d); err != nil {
			return nil, fmt.Errorf("storing the delivery of operation %s: %w", d.Op, err)
		}
	}
	return nil, s.append(tx, b.Entries, lines)
}

// The prefixes keep what is sealed as one thing from being put in another's place.
const (
	grantPrefix = "grant "
	lockPrefix  = "lock "
)

// deliver notes what a messenger has been told; where that is all, the operation
// needs no telling any more.
func deliver(tx *bbolt.Tx, d approvals.Delivery) error {
	data, err := json.Marshal(d)
	if err != nil {
		return err
	}
	if err := tx.Bucket(bucketDeliveries).Put([]byte(d.Op), data); err != nil {
		return err
	}
	untold := tx.Bucket(bucketUntold)
	now := untold.Get([]byte(d.Op))
	switch {
	case now == nil && d.Revision == 0: // asked before there was a messenger
		return untold.Put([]byte(d.Op), binary.BigEndian.AppendUint64(nil, 1))
	case now != nil && d.Revision >= binary.BigEndian.Uint64(now):
		return untold.Delete([]byte(d.Op))
	}
	return nil
}
