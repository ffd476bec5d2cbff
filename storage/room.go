package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"countersign/gate"
)

// What the store does when its file cannot be written:
//
//   - While little room is left, what begins something is refused, and what ends
//     something is taken (gate.Batch.Begins).
//   - A write that fails for lack of room changes nothing that counts. The file is
//     opened anew and looked at, the callers are told what became of their batches,
//     and work goes on.
//   - After any other error the store is poisoned. A sync that failed is one, for
//     whatever reason it did: the system may have given up what it could not write
//     and show it all the same, so that nothing that is read back can be trusted.

// diskReserve is how much of the volume must be left, in bytes, for something to begin.
const diskReserve = 64 << 20

// softShare of MaxBytes, in percent, is what may be used for something to begin.
const softShare = 90

// After a write for which there was no room, nothing begins for a while: the volume
// need not show why, where a quota or a limit of the process is the reason.
const (
	firstPause = time.Second
	maxPause   = 30 * time.Second
)

// room is what is known of how much can still be written.
type room struct {
	size atomic.Int64 // of the file at least
	used atomic.Int64 // of it, without free pages

	mu    sync.Mutex
	cause error // of the last write that failed for lack of room, until one succeeds after the pause
	pause time.Duration
	until time.Time

	unmapped time.Time // the file's pages, last; the writer's own

	looked time.Time // at the volume
	free   uint64    // bytes
	known  bool
}

// lacks notes that a write failed for lack of room.
func (r *room) lacks(err error, log *slog.Logger) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cause == nil {
		log.Error("the audit log has no room", "err", err)
	}
	r.pause = min(max(2*r.pause, firstPause), maxPause)
	r.cause, r.until = err, time.Now().Add(r.pause)
}

// took notes that a write succeeded.
func (r *room) took(log *slog.Logger) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cause != nil && time.Now().After(r.until) {
		r.cause, r.pause = nil, 0
		log.Info("the audit log takes records again")
	}
}

// Full is why nothing may begin now, as ErrFull with what can be done about it, or nil.
func (s *Store) Full() error {
	r := &s.room
	if limit, used := int64(s.opts.MaxBytes), r.used.Load(); limit > 0 && used >= limit/100*softShare {
		return fmt.Errorf("%w: %d of its %d bytes are used: raise maxStoreBytes and restart the server", gate.ErrFull, used, limit)
	}
	folder := filepath.Dir(s.path)
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.looked) >= time.Second {
		var volume unix.Statfs_t
		r.known = unix.Statfs(folder, &volume) == nil
		r.looked, r.free = now, volume.Bavail*uint64(volume.Bsize)
	}
	if r.known && r.free < diskReserve {
		return fmt.Errorf("%w: the volume of %s has %d MiB left: make it %d at least", gate.ErrFull, folder, r.free>>20, diskReserve>>20)
	}
	if r.cause != nil && time.Now().Before(r.until) {
		return fmt.Errorf("%w: %w: make room on the volume of %s, or raise what limits it; the server tries again by itself", gate.ErrFull, r.cause, folder)
	}
	return nil
}

// Room is why the store would not take something that begins now, or nil.
func (s *Store) Room() error {
	if err := s.Healthy(); err != nil {
		return err
	}
	return s.Full()
}

// lacksRoom reports whether a commit failed because there was no room to write what
// comes before its sync. What was written by then lies in pages that nothing leads to.
func lacksRoom(err error) bool {
	if errors.Is(err, bbolterrors.ErrMaxSizeReached) {
		return true
	}
	var failed *fs.PathError
	written := errors.As(err, &failed) && failed.Op == "write"
	text, resized := strings.CutPrefix(err.Error(), "file resize error: ") // bbolt keeps only the text
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG} {
		if written && errors.Is(err, errno) || resized && strings.HasSuffix(text, errno.Error()) {
			return true
		}
	}
	return false
}

// errDamaged says that the file holds what bbolt never wrote, or not all that it did.
var errDamaged = errors.New("the file is damaged")

// poison ends all writing, and returns the error that says so.
func (s *Store) poison(err error) error {
	if s.poisoned.CompareAndSwap(nil, &err) {
		s.opts.Log.Error("the audit log takes nothing more until the server is started again; "+
			"what could not be synced may seem to be on the disk without being there", "err", err)
	}
	return s.Healthy()
}

// update runs f in the transaction that writes. A damaged page is an error.
func (s *Store) update(f func(tx *bbolt.Tx) error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			s.stuck.Store(true) // rolling back can meet the same page, and then the lock stays
			err = fmt.Errorf("%w: %v", errDamaged, r)
		}
	}()
	if err := s.uncut(); err != nil {
		return err
	}
	return s.db.Update(f)
}

// uncut is an error where the file is shorter than it was: to read what is gone from
// behind a mapping ends a process, or at best the transaction.
func (s *Store) uncut() error {
	info, err := s.file.Stat()
	if err == nil && info.Size() < s.room.size.Load() {
		err = fmt.Errorf("%w: it had %d bytes at least, and has %d", errDamaged, s.room.size.Load(), info.Size())
	}
	return err
}

// measure notes how large the file is, and how much of it is used.
func (s *Store) measure() error {
	var size int64
	if err := s.view(func(tx *bbolt.Tx) error { size = tx.Size(); s.unmap(tx); return nil }); err != nil {
		return err
	}
	stats := s.db.Stats()
	s.room.size.Store(size)
	s.room.used.Store(size - int64(stats.FreePageN+stats.PendingPageN)*int64(s.db.Info().PageSize))
	return s.uncut()
}

// unmapEvery is how often the pages of the file are taken out of this process's memory.
// Tests set it.
var unmapEvery = 10 * time.Second

// unmap takes the file's pages out of this process's memory, from time to time: what the
// log was written and read for would add up to all of it, as memory that this process
// seems to need. The system keeps them in its cache, and those that are needed again are
// back at once. It is called within a transaction, so that the mapping stays where it is.
func (s *Store) unmap(tx *bbolt.Tx) {
	if time.Since(s.room.unmapped) < unmapEvery {
		return
	}
	s.room.unmapped = time.Now()
	if info, err := s.file.Stat(); err == nil { // what is beyond the file may be other memory
		unix.Syscall(unix.SYS_MADVISE, s.db.Info().Data, uintptr(min(tx.Size(), info.Size())), unix.MADV_DONTNEED)
	} // an error means that they stay
}

// reopen opens the file anew after a write that failed for lack of room, makes what it
// shows durable and checks the end of the log, as a start does. It reports whether the
// transaction of that id is in the file; before it the log had so many records.
func (s *Store) reopen(id int, before uint64) (stored bool, err error) {
	defer func() {
		if r := recover(); r != nil {
			s.stuck.Store(true)
			err = fmt.Errorf("%w: %v", errDamaged, r)
		}
		if err != nil {
			err = fmt.Errorf("opening the audit log again, after it had no room: %w", err)
		}
	}()
	wrote := s.log.tree.Size() // where it is stored
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.db.Close(); err != nil {
		return false, err
	}
	if err := s.open(); err != nil {
		return false, err
	}
	if err := s.db.Sync(); err != nil {
		return false, err
	}
	err = s.db.View(func(tx *bbolt.Tx) error {
		size := before
		if stored = tx.ID() == id; stored {
			size = wrote
		}
		if err := s.takeUp(tx); err != nil {
			return err
		}
		if s.log.tree.Size() != size || !stored && tx.ID() != id-1 {
			return fmt.Errorf("it has %d records instead of %d: somebody else has written to it", s.log.tree.Size(), size)
		}
		return nil
	})
	return stored, err
}
