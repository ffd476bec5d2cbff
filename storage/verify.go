package storage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"

	"go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"countersign/audit"
)

// chunk is how many records are checked in one transaction. A read that lasts keeps
// the file from reusing pages, and can keep the writer waiting.
const chunk = 1000

// Verify checks the whole log, its hashes and its payloads against the newest
// checkpoint, those that were anchored, and more that were got otherwise, all of
// which must be signed with the key. What is appended meanwhile is left out.
// Its error is that the log cannot be read; what is wrong with it is in the Report.
func (s *Store) Verify(ctx context.Context, key note.Verifier, more [][]byte) (audit.Report, error) {
	var newest []byte
	var signed [][]byte
	var public string
	var sequence uint64
	ends := make([][]byte, len(columns))
	err := s.view(func(tx *bbolt.Tx) error {
		newest = bytes.Clone(tx.Bucket(bucketMeta).Get([]byte("checkpoint")))
		public = string(tx.Bucket(bucketMeta).Get([]byte("verifier")))
		sequence = tx.Bucket(bucketRecords).Sequence()
		for i, name := range columns {
			end, _ := tx.Bucket(name).Cursor().Last()
			ends[i] = bytes.Clone(end)
		}
		return tx.Bucket(bucketCheckpoints).ForEach(func(_, c []byte) error {
			signed = append(signed, bytes.Clone(c))
			return nil
		})
	})
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
	if stated, err := note.NewVerifier(public); err != nil || stated.Name() != key.Name() || stated.KeyHash() != key.KeyHash() {
		v.Find(audit.KeyChanged, 0, "the file says that its key is %.200q", public)
	}
	last := sequence
	if end := ends[0]; len(end) == 8 {
		last = binary.BigEndian.Uint64(end)
	}
	head, err := audit.OpenCheckpoint(newest, key)
	if err != nil {
		head.Size = last // what there is is looked at, and the finding says that nothing vouches for it
	}
	if sequence != head.Size {
		v.Find(audit.Edited, 0, "the file says that it has %d records, and its newest checkpoint is of %d", sequence, head.Size)
	}
	for i, end := range ends {
		switch {
		case bytes.Compare(end, seqKey(head.Size)) <= 0:
		case i == 0 && last > head.Size:
			v.FindAll(audit.Unsigned, head.Size+1, last, "the records %d to %d come after the newest checkpoint", head.Size+1, last)
		default:
			v.Find(audit.Edited, head.Size+1, "in %s something lies after the newest record", columns[i])
		}
	}
	var pruned audit.Record
	var gone audit.Pruned
	var known uint64
	p := payloads{v: v}
	for from := uint64(1); from <= head.Size; from += chunk {
		if err := ctx.Err(); err != nil {
			return audit.Report{}, err
		}
		err := s.view(func(tx *bbolt.Tx) error {
			known = prunedSince(tx, known, &pruned) // retention goes on meanwhile
			if pruned.Pruned != nil {
				gone = *pruned.Pruned
			}
			p.from = gone.PayloadsBefore
			records, hashes := newColumn(tx, bucketRecords, from), newColumn(tx, bucketHashes, from)
			p.masked, p.sealed = newColumn(tx, bucketPayloads, from), newColumn(tx, bucketSealed, from)
			for seq := from; seq < from+chunk && seq <= head.Size; seq++ {
				leaf := records.take(v, seq)
				packed := hashes.take(v, seq)
				var row []tlog.Hash
				if len(packed)%tlog.HashSize == 0 {
					for ; len(packed) > 0; packed = packed[tlog.HashSize:] {
						row = append(row, tlog.Hash(packed[:tlog.HashSize]))
					}
				}
				v.Stored(leaf, seq < gone.RecordsBefore, row)
				p.check(seq, leaf)
			}
			return nil
		})
		if err != nil {
			return audit.Report{}, err
		}
	}
	report := v.Report(audit.RolledBack)
	if report.Retention = audit.RetentionOf(&pruned); gone.RecordsBefore > 0 {
		report.First = gone.RecordsBefore
	}
	return report, nil
}

// columns are the buckets that have a row for a record, or for some.
var columns = [][]byte{bucketRecords, bucketHashes, bucketPayloads, bucketSealed}

// column reads one of them along the records.
type column struct {
	cursor     *bbolt.Cursor
	name       []byte
	key, value []byte
}

// newColumn begins with what comes after the record before from.
func newColumn(tx *bbolt.Tx, name []byte, from uint64) *column {
	c := &column{cursor: tx.Bucket(name).Cursor(), name: name}
	if c.key, c.value = c.cursor.First(); from > 1 {
		c.key, c.value = c.cursor.Seek(append(seqKey(from-1), 0))
	}
	return c
}

// take is what there is for a record, nil for nothing.
func (c *column) take(v *audit.Verification, seq uint64) (value []byte) {
	key := seqKey(seq)
	for c.key != nil && bytes.Compare(c.key, key) < 0 {
		v.Find(audit.Edited, seq, "in %s something that is of no record lies before that of record %d", c.name, seq)
		c.key, c.value = c.cursor.Next()
	}
	if bytes.Equal(c.key, key) {
		value = c.value
		c.key, c.value = c.cursor.Next()
	}
	return value
}

// pruned is what retention has taken out, as the newest record of it says. That it is
// one of the log's is seen when it is checked like all others.
func (s *Store) pruned() (gone audit.Pruned, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		var r audit.Record
		if prunedSince(tx, 0, &r); r.Pruned != nil {
			gone = *r.Pruned
		}
		return nil
	})
	return gone, err
}

// prunedSince looks for that record in those after one, and leaves pruned as it is where
// there is none. It returns the number of the newest record. Search would not do: it ends at a
// record that is damaged.
func prunedSince(tx *bbolt.Tx, after uint64, pruned *audit.Record) (newest uint64) {
	w := want(&audit.Query{Type: audit.LogPruned})
	index, records := tx.Bucket(bucketIndex), tx.Bucket(bucketRecords).Cursor()
	last, _ := records.Last()
	if len(last) != 8 {
		return after
	}
	newest = binary.BigEndian.Uint64(last)
	var begin uint64 // of the block, less one
	for to := newest; to > after; to = begin {
		begin = (to - 1) / blockRecords * blockRecords
		if b := index.Get(blockKey(to)); b != nil && !w.may(b) {
			continue
		}
		k, leaf := records.Seek(seqKey(to))
		if k == nil {
			k, leaf = records.Last()
		}
		for end := seqKey(max(after, begin)); bytes.Compare(k, end) > 0; k, leaf = records.Prev() {
			var r audit.Record
			if bytes.Contains(leaf, prunedType) && json.Unmarshal(leaf, &r) == nil && r.Type == audit.LogPruned && r.Pruned != nil {
				*pruned = r
				return newest
			}
		}
	}
	return newest
}

var prunedType = []byte(`"type":"` + audit.LogPruned + `"`)

// payloads compares what lies beside records with what they commit to.
type payloads struct {
	v              *audit.Verification
	from           uint64 // retention took out those before
	masked, sealed *column
}

var commits = []byte(`"payload":{"sha256":"`)

func (p *payloads) check(seq uint64, leaf []byte) {
	packed, sealed := p.masked.take(p.v, seq), p.sealed.take(p.v, seq)
	var r struct {
		Payload *audit.Payload `json:"payload"`
	}
	if leaf == nil || bytes.Contains(leaf, commits) && json.Unmarshal(leaf, &r) != nil {
		return // which is found otherwise
	}
	if r.Payload == nil {
		if packed != nil || sealed != nil {
			p.v.Find(audit.Edited, seq, "beside record %d lies a payload that it does not tell of", seq)
		}
		return
	}
	if packed != nil {
		data, err := audit.Unpack(packed)
		if sum := sha256.Sum256(data); err != nil || hex.EncodeToString(sum[:]) != r.Payload.SHA256 {
			p.v.Find(audit.Edited, seq, "the payload of record %d is not what the record tells of", seq)
		}
	} else if seq >= p.from {
		p.v.Find(audit.Removed, seq, "the payload of record %d is missing", seq)
	}
	// That a sealed payload holds what it is said to only the auditors can check: Unseal does.
	sum := sha256.Sum256(sealed)
	switch {
	case r.Payload.Sealed == "" && sealed != nil:
		p.v.Find(audit.Edited, seq, "beside record %d lies a sealed payload that it does not tell of", seq)
	case r.Payload.Sealed != "" && sealed == nil && seq >= p.from:
		p.v.Find(audit.Removed, seq, "the sealed payload of record %d is missing", seq)
	case sealed != nil && hex.EncodeToString(sum[:]) != r.Payload.SealedSHA256:
		p.v.Find(audit.Edited, seq, "the sealed payload of record %d is not what the record tells of", seq)
	}
}
