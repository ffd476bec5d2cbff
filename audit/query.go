package audit

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// Query says which records are looked for. An empty field says nothing; all others
// must hold of one and the same record.
type Query struct {
	// Principal is a user name or a subject, or for whom an agent acts.
	Principal string `json:"principal,omitempty"`
	Session   string `json:"session,omitempty"`
	Op        string `json:"op,omitempty"`
	Type      string `json:"type,omitempty"`
	Tool      string `json:"tool,omitempty"`
	Outcome   string `json:"outcome,omitempty"`
	// Cluster, Namespace, Resource and Name must hold of one of the record's
	// Actions. Resource is apps/v1/deployments or deployments.
	Cluster   string `json:"cluster,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Resource  string `json:"resource,omitempty"`
	Name      string `json:"name,omitempty"`
	// Since and Until are times of records: from Since on, and before Until.
	Since time.Time `json:"since,omitzero"`
	Until time.Time `json:"until,omitzero"`
	// Text is somewhere in the record; capital letters A to Z count as small ones.
	Text string `json:"text,omitempty"`
}

// Terms are what each record that the query is about has among its own Terms.
func (q *Query) Terms() []string {
	var terms []string
	for _, f := range []struct{ field, value string }{
		{"principal", q.Principal}, {"session", q.Session}, {"op", q.Op}, {"type", q.Type}, {"tool", q.Tool}, {"outcome", q.Outcome},
		{"cluster", q.Cluster}, {"namespace", q.Namespace}, {"resource", q.Resource}, {"name", q.Name},
	} {
		if f.value != "" {
			terms = append(terms, f.field+"="+f.value)
		}
	}
	return terms
}

// Terms are what a record is found by, beside its text: fields and their values.
func (r *Record) Terms() []string {
	var terms []string
	add := func(field, value string) {
		if value != "" {
			terms = append(terms, field+"="+value)
		}
	}
	if r.Principal != nil {
		for _, name := range r.names() {
			add("principal", name)
		}
	}
	add("session", r.Session)
	add("op", r.Op)
	add("type", r.Type)
	add("outcome", r.Outcome)
	if r.Tool != nil {
		add("tool", r.Tool.Name)
	}
	for i, a := range r.Actions {
		if i > 0 && a.Cluster == r.Actions[i-1].Cluster && a.Namespace == r.Actions[i-1].Namespace && a.Resource == r.Actions[i-1].Resource {
			add("name", a.Name)
			continue
		}
		add("cluster", a.Cluster)
		add("namespace", a.Namespace)
		add("resource", a.Resource)
		add("resource", plural(a.Resource))
		add("name", a.Name)
	}
	return terms
}

func (r *Record) names() []string {
	return []string{r.Principal.Username, r.Principal.Subject, r.Principal.OnBehalfOf}
}

// plural is deployments of apps/v1/deployments.
func plural(resource string) string { return resource[strings.LastIndexByte(resource, '/')+1:] }

// Needle is what the JSON of every record with the text holds, in small letters.
func (q *Query) Needle() []byte {
	if q.Text == "" {
		return nil
	}
	quoted, _ := json.Marshal(q.Text)
	return Lower(quoted[1 : len(quoted)-1])
}

// Lower is the text with small letters for A to Z. Other letters stay, so that its
// length does.
func Lower(text []byte) []byte {
	lower := bytes.Clone(text)
	for i, c := range lower {
		if 'A' <= c && c <= 'Z' {
			lower[i] = c + 'a' - 'A'
		}
	}
	return lower
}

// Match reports whether the query is about a record, given as it is stored.
func (q *Query) Match(leaf []byte) (bool, error) {
	if *q == (Query{}) {
		return true, nil // nor need it be a record that can be read
	}
	for _, value := range []string{q.Principal, q.Session, q.Op, q.Type, q.Tool, q.Outcome, q.Cluster, q.Namespace, q.Name, plural(q.Resource)} {
		if value == "" {
			continue
		}
		// Most records are told by this, without being decoded.
		if quoted, _ := json.Marshal(value); !bytes.Contains(leaf, quoted[1:len(quoted)-1]) {
			return false, nil
		}
	}
	if needle := q.Needle(); needle != nil && !bytes.Contains(Lower(leaf), needle) {
		return false, nil
	}
	var r Record
	if err := json.Unmarshal(leaf, &r); err != nil {
		return false, err
	}
	return q.match(&r), nil
}

func (q *Query) match(r *Record) bool {
	is := func(want, got string) bool { return want == "" || want == got }
	switch {
	case q.Principal != "" && (r.Principal == nil || !slices.Contains(r.names(), q.Principal)),
		q.Tool != "" && (r.Tool == nil || r.Tool.Name != q.Tool),
		!is(q.Session, r.Session), !is(q.Op, r.Op), !is(q.Type, r.Type), !is(q.Outcome, r.Outcome),
		!q.Since.IsZero() && r.Time.Before(q.Since),
		!q.Until.IsZero() && !r.Time.Before(q.Until):
		return false
	}
	if q.Cluster == "" && q.Namespace == "" && q.Resource == "" && q.Name == "" {
		return true
	}
	return slices.ContainsFunc(r.Actions, func(a Action) bool {
		return is(q.Cluster, a.Cluster) && is(q.Namespace, a.Namespace) && is(q.Name, a.Name) &&
			(is(q.Resource, a.Resource) || q.Resource == plural(a.Resource))
	})
}
