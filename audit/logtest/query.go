package logtest

import (
	"encoding/json"
	"strings"
	"time"

	"countersign/audit"
)

// Query makes a query out of what a record says, or nearly says.
func (m *Maker) Query(r *audit.Record) (q audit.Query) {
	some := func(field *string, values ...string) {
		if m.rand.IntN(4) > 0 || len(values) == 0 {
			return
		}
		*field = values[m.rand.IntN(len(values))]
		if m.rand.IntN(20) == 0 {
			*field += "x"
		}
		if n := len(*field); n > 1 && m.rand.IntN(20) == 0 {
			*field = (*field)[:n-1]
		}
	}
	if p := r.Principal; p != nil {
		some(&q.Principal, p.Username, p.Subject, p.OnBehalfOf)
	}
	some(&q.Session, r.Session)
	some(&q.Op, r.Op)
	some(&q.Type, r.Type)
	some(&q.Outcome, r.Outcome)
	if r.Tool != nil {
		some(&q.Tool, r.Tool.Name)
	}
	if len(r.Actions) > 0 {
		a := r.Actions[m.rand.IntN(len(r.Actions))]
		some(&q.Cluster, a.Cluster)
		some(&q.Namespace, a.Namespace)
		some(&q.Name, a.Name)
		some(&q.Resource, a.Resource, a.Resource[strings.LastIndexByte(a.Resource, '/')+1:])
	}
	if m.rand.IntN(6) == 0 {
		q.Since = r.Time.Add(time.Duration(m.rand.IntN(5)-2) * time.Second)
	}
	if m.rand.IntN(6) == 0 {
		q.Until = r.Time.Add(time.Duration(m.rand.IntN(5)-1) * time.Second)
	}
	if m.rand.IntN(6) == 0 {
		some(&q.Text, "<their>", "TEAM-7", "Conflict", "production need a second", `"severity`, "x", "é", "app-1", r.ID, r.ID[:2])
	}
	return q
}

// Read is a record as somebody else reads it.
type Read struct {
	fields map[string]any
	small  string // its text in small letters
}

// NewRead reads a record.
func NewRead(leaf []byte) Read {
	r := Read{small: small(string(leaf))}
	if err := json.Unmarshal(leaf, &r.fields); err != nil {
		panic(err)
	}
	return r
}

// Matches is what Query.Match is to say, found out in another way.
func (read Read) Matches(q *audit.Query) bool {
	r := read.fields
	get := func(v any, path ...string) string {
		for _, name := range path {
			v, _ = v.(map[string]any)[name]
			if v == nil {
				return ""
			}
		}
		text, _ := v.(string)
		return text
	}
	for want, got := range map[[2]string][]string{
		{"principal", q.Principal}: {get(r, "principal", "username"), get(r, "principal", "subject"), get(r, "principal", "on_behalf_of")},
		{"session", q.Session}:     {get(r, "session")},
		{"op", q.Op}:               {get(r, "op")},
		{"type", q.Type}:           {get(r, "type")},
		{"outcome", q.Outcome}:     {get(r, "outcome")},
		{"tool", q.Tool}:           {get(r, "tool", "name")},
	} {
		found := want[1] == ""
		for _, value := range got {
			found = found || value == want[1]
		}
		if !found {
			return false
		}
	}
	at, err := time.Parse(time.RFC3339Nano, get(r, "time"))
	if err != nil {
		panic(err)
	}
	if !q.Since.IsZero() && at.Before(q.Since) || !q.Until.IsZero() && !at.Before(q.Until) {
		return false
	}
	if q.Text != "" {
		quoted, _ := json.Marshal(q.Text)
		if !strings.Contains(read.small, small(strings.Trim(string(quoted), `"`))) {
			return false
		}
	}
	if q.Cluster+q.Namespace+q.Resource+q.Name == "" {
		return true
	}
	actions, _ := r["actions"].([]any)
	for _, a := range actions {
		resource := get(a, "resource")
		parts := strings.Split(resource, "/")
		if (q.Cluster == "" || q.Cluster == get(a, "cluster")) && (q.Namespace == "" || q.Namespace == get(a, "namespace")) && (q.Name == "" || q.Name == get(a, "name")) &&
			(q.Resource == "" || q.Resource == resource || q.Resource == parts[len(parts)-1]) {
			return true
		}
	}
	return false
}

func small(text string) string {
	return strings.Map(func(c rune) rune {
		if 'A' <= c && c <= 'Z' {
			return c - 'A' + 'a'
		}
		return c
	}, text)
}
