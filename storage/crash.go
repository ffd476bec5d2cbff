//go:build crash

package storage

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"countersign/gate"
)

// With the tag crash the process kills itself at a commit, as a power cut would:
// COUNTERSIGN_CRASH is "before" or "after", a record's type or "delivery", and
// which commit of this kind, such as "after exec.started 1".
func init() {
	words := strings.Fields(os.Getenv("COUNTERSIGN_CRASH"))
	if len(words) != 3 {
		return
	}
	crashpoint = at(words, func() {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // nothing more happens until the signal has come
	})
}

// at calls f once at the commit that the words name.
func at(words []string, f func()) func(when string, b *gate.Batch) {
	left, err := strconv.Atoi(words[2])
	if err != nil {
		panic(err)
	}
	return func(when string, b *gate.Batch) {
		kind := slices.ContainsFunc(b.Entries, func(e gate.Entry) bool { return e.Record.Type == words[1] })
		if when != words[0] || !kind && (words[1] != "delivery" || len(b.Deliveries) == 0) {
			return
		}
		if left--; left == 0 {
			f()
		}
	}
}
