package storage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"

	"go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"countersign/audit"
)

// Verify checks the whole log, its hashes and its payloads against the newest
// checkpoint, those that were anchored, and more that were got otherwise, all of
// which must be signed with the key. What is appended meanwhile is left out.
// Its error is that the log cannot be read; what is wrong with it is in the Report.
func (s *Store) Verify(ctx context.Context, key note.Verifier, more [][]byte) (audit.Report, error) {
	var newest []byte
	var last uint64
	err := s.view(func(tx *bbolt.Tx) error {
		newest = bytes.Clone(tx.Bucket(bucketMeta).Get([]byte("checkpoint")))
		if key, _ := tx.Bucket(bucketRecords).Cursor().Last(); len(key) == 8 {
			last = binary.BigEndian.Uint64(key)
		}
		return nil
	})
	if err != nil {
		return audit.Report{}, err
	}
	signed, err := s.Checkpoints()
	if err != nil {
		return audit.Report{}, err
	}
	gone, err := s.pruned()
	if err != nil {
		return audit.Report{}, err
	}
	// An anchored checkpoint is among the stored ones, too; each is looked at once.
	all := [][]byte{newest}
	seen := map[string]bool{string(newest): true}
	for _, c := range append(signed, more...) {
		if !seen[string(c)] {
			seen[string(c)] = true
			all = append(all, c)
		}
	}
	v := audit.NewVerification(key, all)
	head, err := audit.OpenCheckpoint(newest, key)
	if err != nil {
		head.Size = last // what there is is looked at, and the finding says that nothing vouches for it
	}
	if last > head.Size {
		v.Find(audit.Unsigned, last, "record %d comes after the newest checkpoint, which is of %d records", last, head.Size)
	}
	p := payloads{v: v, from: gone.PayloadsBefore}
	for from := uint64(1); from <= head.Size; from += chunk {
		if err := ctx.Err(); err != nil {
			return audit.Report{}, err
		}
		err := s.view(func(tx *bbolt.Tx) error {
			records, hashes := tx.Bucket(bucketRecords).Cursor(), tx.Bucket(bucketHashes).Cursor()
			p.cursor = tx.Bucket(bucketPayloads).Cursor()
			rk, rv := records.Seek(seqKey(from))
			hk, hv := hashes.Seek(seqKey(from))
			p.key, p.value = p.cursor.Seek(seqKey(from))
			for seq := from; seq < from+chunk && seq <= head.Size; seq++ {
				key := seqKey(seq)
				var leaf []byte
				if bytes.Equal(rk, key) {
					leaf = rv
					rk, rv = records.Next()
				}
				var known []tlog.Hash
				if bytes.Equal(hk, key) {
					for ; len(hv) >= tlog.HashSize; hv = hv[tlog.HashSize:] {
						known = append(known, tlog.Hash(hv[:tlog.HashSize]))
					}
					hk, hv = hashes.Next()
				}
				v.Stored(leaf, seq < gone.RecordsBefore, known)
				p.check(seq, key, leaf)
			}
			return nil
		})
		if err != nil {
			return audit.Report{}, err
		}
	}
	report := v.Report(audit.RolledBack)
	if gone.RecordsBefore > 0 {
		report.First = gone.RecordsBefore
	}
	return report, nil
}

// pruned is what retention has taken out, as the newest record of it says. That it is
// one of the log's is seen when it is checked like all others.
func (s *Store) pruned() (gone audit.Pruned, err error) {
	stop := errors.New("found")
	err = s.Search(&audit.Query{Type: audit.LogPruned}, 0, 0, true, func(_ uint64, leaf []byte) error {
		var r audit.Record
		if err := json.Unmarshal(leaf, &r); err != nil || r.Pruned == nil {
			return err
		}
		gone = *r.Pruned
		return stop
	})
	if errors.Is(err, stop) {
		err = nil
	}
	return gone, err
}

// payloads compares what lies beside records with what they commit to.
type payloads struct {
	v          *audit.Verification
	from       uint64 // retention took out those before
	cursor     *bbolt.Cursor
	key, value []byte
}

var commits = []byte(`"payload":{"sha256":"`)

func (p *payloads) check(seq uint64, key, leaf []byte) {
	var packed []byte
	if bytes.Equal(p.key, key) {
		packed = p.value
		p.key, p.value = p.cursor.Next()
	}
	var r struct {
		Payload *audit.Payload `json:"payload"`
	}
	if bytes.Contains(leaf, commits) && json.Unmarshal(leaf, &r) != nil {
		return // which is found otherwise
	}
	switch {
	case r.Payload == nil && packed != nil && leaf != nil:
		p.v.Find(audit.Edited, seq, "beside record %d lies a payload that it does not tell of", seq)
	case r.Payload != nil && packed == nil && seq >= p.from:
		p.v.Find(audit.Removed, seq, "the payload of record %d is missing", seq)
	case r.Payload != nil && packed != nil:
		data, err := audit.Unpack(packed)
		if sum := sha256.Sum256(data); err != nil || hex.EncodeToString(sum[:]) != r.Payload.SHA256 {
			p.v.Find(audit.Edited, seq, "the payload of record %d is not what the record tells of", seq)
		}
	}
}
