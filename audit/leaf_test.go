package audit

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/action"
)

// long is text that JSON makes six times as long.
func long(bytes int) string { return strings.Repeat("<", bytes) }

func texts(n, bytes int) []string { return slices.Repeat([]string{long(bytes)}, n) }

// longestActions have the longest names that Kubernetes has.
func longestActions(n int) []Action {
	actions := make([]Action, n)
	for i := range actions {
		actions[i] = Action{
			Cluster: strings.Repeat("c", 63), Verb: "deletecollection", Resource: strings.Repeat("g", 253) + "/v1alpha1/" + strings.Repeat("r", 63), Subresource: "ephemeralcontainers", Patch: "strategic",
			Namespace: strings.Repeat("n", 63), Name: strings.Repeat("o", 253), UID: "01a206bd-0319-7440-92a4-fcdb2036f4fb", ResourceVersion: "12345678901234567890", ResultVersion: "12345678901234567890",
			AuditID: fmt.Sprintf("01a206bd-0319-7440-92a4-fcdb2036f4fb.%08x", i), Code: 200,
		}
	}
	return actions
}

// hugeRecords are records of which parts that others choose are as long as they get.
func hugeRecords() map[string]Record {
	record := func(f func(r *Record)) Record {
		r := Record{
			V: Version, ID: "01a206bd-0319-7ca4-9fb0-0239341ceddc", Time: time.Date(2026, 3, 14, 12, 0, 0, 999999999, time.UTC), Type: ExecOutcome, Op: "01a206bd-0319-7440-92a4-fcdb2036f4fb",
			Outcome: Unknown, Principal: &action.Principal{Issuer: "https://idp", Username: "bot"}, Session: "s", Source: &Source{IP: "::1", Transport: "http"},
			Tool: &Tool{Name: "apply_manifest"}, Policy: &Policy{Digest: "sha256:" + strings.Repeat("a", 64)}, Node: "n", DurationMS: math.MaxInt64,
			Payload: &Payload{SHA256: strings.Repeat("b", 64), Bytes: 4 << 20, Sealed: strings.Repeat("c", 64), SealedSHA256: strings.Repeat("d", 64)},
		}
		f(&r)
		return r
	}
	principal := &action.Principal{Issuer: long(5000), Subject: long(5000), Username: long(5000), Groups: texts(100, 1000), Client: long(5000), OnBehalfOf: long(5000)}
	everything := func(r *Record) {
		r.Principal, r.Session, r.Source = principal, long(20_000), &Source{IP: "::1", Transport: "http", Agent: long(20_000)}
		r.Tool = &Tool{Name: long(20_000), Args: map[string]any{long(20_000): long(20_000)}}
		r.Policy = &Policy{Digest: r.Policy.Digest, Decision: "deny", Rules: texts(500, 100), Reason: long(20_000), Risks: texts(100, 1000), Shadow: &Shadow{Decision: "deny", Rules: texts(200, 500), Reason: long(20_000)}}
		r.Approval = &Approval{State: "PENDING", By: texts(100, 500), Reason: long(20_000), Sets: texts(100, 500), Needs: texts(100, 500), Channels: texts(100, 500), Fields: texts(100, 1000)}
		r.Error, r.Evidence = &Error{Type: long(20_000), Message: long(20_000)}, &Evidence{Result: "applied", Detail: long(20_000)}
		r.Checkpoint = &Anchored{Size: math.MaxInt64, Note: strings.Repeat("n", 3000), Anchors: texts(200, 500), Failed: texts(100, 1000)}
	}
	return map[string]Record{
		"small":                        record(func(*Record) {}),
		"a manifest of 4 MiB":          record(func(r *Record) { r.Tool.Args = map[string]any{"manifest": strings.Repeat("x: \"y\"\n", 4<<20/7)} }),
		"5,000 Actions":                record(func(r *Record) { r.Actions = longestActions(5000) }),
		"many long groups":             record(func(r *Record) { r.Principal = &action.Principal{Username: "bot", Groups: texts(200, 500)} }),
		"many short groups":            record(func(r *Record) { r.Principal = &action.Principal{Username: "bot", Groups: texts(5000, 1)} }),
		"a long name":                  record(func(r *Record) { r.Principal = principal }),
		"a long error":                 record(func(r *Record) { r.Error = &Error{Type: "Invalid", Message: long(4 << 20)} }),
		"a long kind of error":         record(func(r *Record) { r.Error = &Error{Type: long(20_000)} }),
		"an error that is not text":    record(func(r *Record) { r.Error = &Error{Message: strings.Repeat("\xff\x00\u2028é", 1<<18)} }),
		"a long tool and session":      record(func(r *Record) { r.Tool.Name, r.Session = long(20_000), long(20_000) }),
		"many anchors that failed":     record(func(r *Record) { r.Type, r.Checkpoint = LogCheckpoint, &Anchored{Failed: texts(60, 2000)} }),
		"everything":                   record(everything),
		"everything and 50 Actions":    record(func(r *Record) { everything(r); r.Checkpoint, r.Actions = nil, longestActions(MaxActions) }),
		"everything and 5,000 Actions": record(func(r *Record) { everything(r); r.Checkpoint, r.Actions = nil, longestActions(5000) }),
	}
}

// Whatever a record tells of, each of its parts fits an entry of a tile, is JSON, and
// keeps what identifies it; no Audit-ID is lost.
func TestLeafFits(t *testing.T) {
	for name, r := range hugeRecords() {
		t.Run(name, func(t *testing.T) {
			before, _ := json.Marshal(r.Principal)
			ids, got := map[string]bool{}, map[string]bool{}
			for _, a := range r.Actions {
				ids[a.AuditID] = true
			}
			n := 0
			parts := Split(r, func() string { n++; return fmt.Sprintf("id %d", n) })
			for i, part := range parts {
				leaf, err := Leaf(&part)
				if err != nil {
					t.Fatal(err)
				}
				leaf = Number(leaf, math.MaxUint64)
				if seq, ok := Seq(leaf); len(leaf) > MaxLeaf || !ok || seq != math.MaxUint64 {
					t.Fatalf("part %d: %d bytes, and its number is %d, %v", i, len(leaf), seq, ok)
				}
				var back Record
				if err := json.Unmarshal(leaf, &back); err != nil {
					t.Fatal(err)
				}
				if back.Op != r.Op || back.Type != r.Type || back.Outcome != r.Outcome || !back.Time.Equal(r.Time) || back.Policy.Digest != r.Policy.Digest || back.Node != r.Node ||
					back.Principal == nil || back.Tool == nil || back.MoreActions != 0 {
					t.Errorf("part %d does not say whose it is: %.300s", i, leaf)
				}
				if (i == 0) != (back.ID == r.ID) || (i == 0) != (back.Payload != nil) {
					t.Errorf("part %d: id %s, payload %v", i, back.ID, back.Payload)
				}
				for _, a := range back.Actions {
					got[a.AuditID] = true
				}
			}
			if len(got) != len(ids) {
				t.Errorf("%d Audit-IDs of %d", len(got), len(ids))
			}
			if after, _ := json.Marshal(r.Principal); string(after) != string(before) {
				t.Error("the record itself was changed")
			}
		})
	}
}

// What fits stays as it is.
func TestLeafIsTheRecord(t *testing.T) {
	r := Record{V: Version, ID: "i", Type: ToolIntent, Tool: &Tool{Name: "t", Args: map[string]any{"a": strings.Repeat("x", 60_000)}}, Principal: &action.Principal{Groups: slices.Repeat([]string{"g"}, 500)}}
	want, _ := json.Marshal(r)
	if got, err := Leaf(&r); err != nil || string(got) != string(want) {
		t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
	if parts := Split(r, nil); len(parts) != 1 {
		t.Errorf("%d parts", len(parts))
	}
}

// A record whose Actions do not fit, however short the rest is, says how many there were.
func TestLeafCountsActions(t *testing.T) {
	r := Record{V: Version, ID: "i", Actions: slices.Repeat([]Action{{Name: long(300)}}, MaxActions), MoreActions: 2}
	leaf, err := Leaf(&r)
	var back Record
	if err != nil || json.Unmarshal(leaf, &back) != nil || back.MoreActions != MaxActions+2 || len(back.Actions) != 0 {
		t.Errorf("%v, %.300s", err, leaf)
	}
}

func TestShorter(t *testing.T) {
	for _, row := range []struct{ text, want string }{
		{"", ""},
		{strings.Repeat("x", shortText), strings.Repeat("x", shortText)},
		{strings.Repeat("x", shortText+1), strings.Repeat("x", shortText) + " [1 more bytes]"},
		{strings.Repeat("x", shortText-1) + "éé", strings.Repeat("x", shortText-1) + " [4 more bytes]"},
		{long(shortText), long(83) + " [417 more bytes]"},
		{strings.Repeat("\x80", 2*shortText), strings.Repeat("\x80", 83) + " [917 more bytes]"},
	} {
		if got := shorter(row.text); got != row.want {
			t.Errorf("%.20q: got ...%q, want ...%q", row.text, tail(got), tail(row.want))
		}
	}
}

func tail(s string) string { return s[max(0, len(s)-30):] }

func TestSeq(t *testing.T) {
	for _, row := range []struct {
		leaf string
		seq  uint64
		ok   bool
	}{
		{`{"v":1,"seq":0,"id":""}`, 0, true},
		{`{"v":1,"seq":42,"id":""}`, 42, true},
		{`{"v":1,"seq":18446744073709551615,`, math.MaxUint64, true},
		{`{"v":1,"seq":18446744073709551616,`, 0, false},
		{`{"v":1,"seq":042,`, 0, false},
		{`{"v":1,"seq":+4,`, 0, false},
		{`{"v":1,"seq":-1,`, 0, false},
		{`{"v":1,"seq":,`, 0, false},
		{`{"v":1,"seq":42`, 0, false},
		{`{"v":1,"seq":4 ,`, 0, false},
		{`{"v":1,"seq": 4,`, 0, false},
		{`{"v":2,"seq":4,`, 0, false},
		{`{"seq":4,"v":1,`, 0, false},
		{` {"v":1,"seq":4,`, 0, false},
		{``, 0, false},
	} {
		if seq, ok := Seq([]byte(row.leaf)); seq != row.seq || ok != row.ok {
			t.Errorf("%s: %d, %v", row.leaf, seq, ok)
		}
	}
}

func FuzzSeq(f *testing.F) {
	f.Add([]byte(`{"v":1,"seq":42,"id":"x"}`), uint64(7))
	f.Add([]byte(`{"v":1,"seq":18446744073709551616,`), uint64(math.MaxUint64))
	f.Fuzz(func(t *testing.T, leaf []byte, other uint64) {
		seq, ok := Seq(leaf)
		if ok && !strings.HasPrefix(string(leaf), fmt.Sprintf(`{"v":1,"seq":%d,`, seq)) {
			t.Errorf("%q has the number %d", leaf, seq)
		}
		if !ok || seq != 0 {
			return
		}
		if again, ok := Seq(Number(leaf, other)); !ok || again != other {
			t.Errorf("%q was given the number %d and has %d, %v", leaf, other, again, ok)
		}
	})
}
