package anchors

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"countersign/audit"
)

// maxTail is how much of the end of the file is looked at, in bytes: many times a
// note.
const maxTail = 64 << 10

// File appends each checkpoint to a file, which it makes with mode 0600. Below
// each note is an empty line, so that people and audit.Checkpoints can take them
// apart. v is the log's key.
//
// A file that is not as the last Put left it, or whose end this log does not
// continue, is an error, after the checkpoint was appended all the same: nothing is
// gained by keeping it out.
func File(path string, v note.Verifier) Anchor {
	f := &file{path: path, verifier: v, end: -1}
	return Anchor{Name: "file:" + path, Put: func(_ context.Context, h Head) ([]byte, error) { return nil, f.put(h) }}
}

type file struct {
	path     string
	verifier note.Verifier
	// end is how long the file was after the last Put, and last what that wrote;
	// end is -1 before the first.
	end  int64
	last []byte
}

func (f *file) put(h Head) (err error) {
	_, err = os.Lstat(f.path)
	made := errors.Is(err, os.ErrNotExist)
	// Opened anew each time, so that a file that was moved away is not written on.
	file, err := os.OpenFile(f.path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("this is no file that could be appended to")
	}
	tail := make([]byte, min(info.Size(), maxTail))
	if _, err := file.ReadAt(tail, info.Size()-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	damage := f.look(info.Size(), tail, h)

	entry := append(bytes.Clone(h.Note), '\n')
	if len(tail) > 0 && !bytes.HasSuffix(tail, []byte("\n\n")) {
		entry = append([]byte("\n\n"), entry...) // after what a crash or somebody else left half written
	}
	if _, err := file.Write(entry); err != nil {
		// Half a checkpoint would stay, for verify to find, as it does in a file that may only grow.
		if file.Truncate(info.Size()) != nil {
			f.end = -1
		}
		return err
	}
	f.end, f.last = info.Size()+int64(len(entry)), entry // whether or not it is durable
	if err := file.Sync(); err != nil {
		return err
	}
	if made { // its name is to survive a crash too
		if err := syncFolder(filepath.Dir(f.path)); err != nil {
			return err
		}
	}
	if damage != nil {
		return fmt.Errorf("the checkpoint was appended, but %w; audit checkpoints and audit verify show what is left", damage)
	}
	return nil
}

// look finds out whether somebody was at the file, or at the log.
func (f *file) look(size int64, tail []byte, h Head) error {
	switch {
	case f.end >= 0 && size < f.end:
		return fmt.Errorf("the file was %d bytes long and is %d now: somebody cut or replaced it", f.end, size)
	case f.end >= 0 && (size > f.end || !bytes.HasSuffix(tail, f.last)):
		return errors.New("the end of the file is not what this server wrote: somebody changed it")
	case size == 0:
		return nil
	case !bytes.HasSuffix(tail, []byte("\n\n")):
		return errors.New("the file ended in the middle of a checkpoint: somebody cut it, or a crash did")
	}
	notes := audit.Checkpoints(tail)
	if len(notes) == 0 {
		return errors.New("the file's end held no checkpoint")
	}
	c, err := audit.OpenCheckpoint(notes[len(notes)-1], f.verifier)
	if err != nil {
		return fmt.Errorf("the last checkpoint in the file does not open: %w", err)
	}
	if c.Size > h.Size {
		return fmt.Errorf("the file has a checkpoint of %d records, and the log has %d: the log was cut, or put back to an older state", c.Size, h.Size)
	}
	proof, err := h.Prove(c.Size)
	if err == nil {
		err = tlog.CheckTree(proof, int64(h.Size), h.Root, int64(c.Size), c.Root)
	}
	if err != nil {
		return fmt.Errorf("the log does not continue the file's last checkpoint, of %d records: the log was changed (%w)", c.Size, err)
	}
	return nil
}

func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
