package audit_test

import (
	"testing"
	"time"

	"countersign/action"
	"countersign/audit"
	"countersign/audit/logtest"
)

// A query is about the records that say what it says, found out field by field.
func TestMatch(t *testing.T) {
	maker := logtest.New(3)
	var records []audit.Record
	var leaves [][]byte
	var reads []logtest.Read
	for range 500 {
		r := maker.Next().Record
		if len(records)%5 == 0 && len(r.Actions) > 0 {
			r.Actions = append(r.Actions, audit.Action{Cluster: "local", Verb: "get", Resource: "v1/namespaces", Name: "team-1"}, r.Actions[0])
		}
		leaf := leafOf(t, r)
		records, leaves = append(records, r), append(leaves, leaf)
		reads = append(reads, logtest.NewRead(leaf))
	}
	found := 0
	for n := range 1500 {
		q := maker.Query(&records[n%len(records)])
		for i := n % 7; i < len(leaves); i += 7 {
			got, err := q.Match(leaves[i])
			if want := reads[i].Matches(&q); err != nil || got != want {
				t.Fatalf("%+v: %v, %v, want %v of\n%s", q, got, err, want, leaves[i])
			} else if got {
				found++
			}
		}
	}
	if found < 500 {
		t.Errorf("only %d records were found", found)
	}
}

func leafOf(t *testing.T, r audit.Record) []byte {
	t.Helper()
	leaf, err := audit.Leaf(&r)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func TestMatchOne(t *testing.T) {
	noon := time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)
	leaf := leafOf(t, audit.Record{V: audit.Version, ID: "i", Time: noon, Type: audit.ToolIntent, Session: "a<b>&\"c\"\u2028é", Principal: &action.Principal{Username: "bot", Subject: "1", OnBehalfOf: "Anna"},
		Actions: []audit.Action{{Cluster: "prod", Resource: "apps/v1/deployments", Namespace: "shop", Name: "web"}, {Cluster: "test", Resource: "v1/pods", Namespace: "shop", Name: "db"}}})
	for _, row := range []struct {
		query audit.Query
		want  bool
	}{
		{audit.Query{}, true},
		{audit.Query{Session: "a<b>&\"c\"\u2028é"}, true},
		{audit.Query{Session: "A<b>&\"c\"\u2028é"}, false},
		{audit.Query{Text: "A<B>&\"C\"\u2028é"}, true},
		{audit.Query{Text: "É"}, false}, // A to Z only
		{audit.Query{Text: "SHOP"}, true},
		{audit.Query{Principal: "bot"}, true},
		{audit.Query{Principal: "1"}, true},
		{audit.Query{Principal: "Anna"}, true},
		{audit.Query{Principal: "anna"}, false},
		{audit.Query{Tool: "bot"}, false},
		{audit.Query{Resource: "deployments"}, true},
		{audit.Query{Resource: "apps/v1/deployments"}, true},
		{audit.Query{Resource: "v1/deployments"}, false},
		{audit.Query{Resource: "apps"}, false},
		{audit.Query{Resource: "deployments", Name: "web"}, true},
		{audit.Query{Resource: "deployments", Name: "db"}, false}, // of two Actions
		{audit.Query{Cluster: "prod", Resource: "pods"}, false},
		{audit.Query{Since: noon}, true},
		{audit.Query{Since: noon.Add(1)}, false},
		{audit.Query{Until: noon}, false},
		{audit.Query{Until: noon.Add(1)}, true},
		{audit.Query{Since: time.Date(1, 1, 1, 0, 0, 1, 0, time.UTC)}, true},
	} {
		if got, err := row.query.Match(leaf); err != nil || got != row.want || logtest.NewRead(leaf).Matches(&row.query) != row.want {
			t.Errorf("%+v: %v, %v", row.query, got, err)
		}
	}
	if _, err := (&audit.Query{Session: "x"}).Match([]byte(`{"session":"x"`)); err == nil {
		t.Error("half a record was read")
	}
}

// Each record has the terms of each query that is about it: the index relies on that.
func TestTerms(t *testing.T) {
	maker := logtest.New(4)
	for range 1000 {
		r := maker.Next().Record
		if r.Actions != nil {
			r.Actions = append(r.Actions, maker.Next().Record.Actions...)
		}
		terms := map[string]bool{}
		for _, term := range r.Terms() {
			terms[term] = true
		}
		q, leaf := maker.Query(&r), leafOf(t, r)
		if !logtest.NewRead(leaf).Matches(&q) {
			continue
		}
		for _, term := range q.Terms() {
			if !terms[term] {
				t.Fatalf("%s has no term %s", leaf, term)
			}
		}
	}
}
