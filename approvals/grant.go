package approvals

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"countersign/action"
)

// Grant is consent to a kind of change for a time: the same principal may make
// the same fields of the same kind in the same namespace something else by the
// same tool, without being asked again.
type Grant struct {
	ID string `json:"id"`
	// Revision counts the stored changes; it is what compare-and-swap compares.
	Revision uint64 `json:"revision"`
	// Op is the operation whose approvers gave it.
	Op        string           `json:"op"`
	Principal action.Principal `json:"principal"`
	Tool      string           `json:"tool"`
	Kinds     []Kind           `json:"kinds"`
	// Risks were shown when it was given; another one is asked about.
	Risks   []string  `json:"risks,omitempty"`
	Votes   []Vote    `json:"votes"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	// Uses counts the operations that ran under it.
	Uses int `json:"uses"`
	// Revoked is who took it back, and why; empty while it holds.
	Revoked string `json:"revoked,omitempty"`
}

// Kind is one kind of change that a Grant covers.
type Kind struct {
	Cluster     string           `json:"cluster"`
	Namespace   string           `json:"namespace"`
	Verb        string           `json:"verb"`
	Resource    action.Resource  `json:"resource"`
	Subresource string           `json:"subresource,omitempty"`
	Patch       action.PatchType `json:"patch,omitempty"`
	// Fields are JSON Pointers (RFC 6901) to every value that may be set; those of
	// values that may be taken away begin with "-".
	Fields []string `json:"fields"`
}

func (k Kind) String() string {
	resource := k.Resource.GroupResource()
	if k.Subresource != "" {
		resource += "/" + k.Subresource
	}
	verb := k.Verb
	if k.Patch == action.ApplyPatch {
		verb = "apply"
	}
	var set, away []string
	for _, f := range k.Fields {
		if bare, ok := strings.CutPrefix(f, takenAway); ok {
			away = append(away, bare)
		} else {
			set = append(set, f)
		}
	}
	var fields []string
	if len(set) > 0 {
		fields = append(fields, "set "+strings.Join(set, ", "))
	}
	if len(away) > 0 {
		fields = append(fields, "take away "+strings.Join(away, ", "))
	}
	return fmt.Sprintf("%s %s, any object of namespace %s in cluster %s: %s", verb, resource, k.Namespace, k.Cluster, strings.Join(fields, "; "))
}

// Kinds are what a Grant given for the operation would cover. There are none
// where something would be made or removed whole: that is no field of anything.
func (op Operation) Kinds() []Kind {
	var kinds []Kind
	for i, a := range op.Plan.Actions {
		if i >= len(op.Diffs) || a.Namespace == "" || a.ReadOnly() || a.Removes() || a.Options.Force {
			return nil
		}
		k := Kind{
			Cluster: a.Cluster, Namespace: a.Namespace, Verb: a.Verb, Resource: a.Resource,
			Subresource: a.Subresource, Patch: a.Options.PatchType,
		}
		for _, c := range op.Diffs[i] {
			if c.Path == "" {
				return nil
			}
			var set, was []string
			if c.Op != "remove" {
				set = leaves(nil, c.Path, c.New)
			}
			if c.Op != "add" {
				was = leaves(nil, c.Path, c.Old)
			}
			for _, f := range set {
				k.Fields = append(k.Fields, op.named(i, f))
			}
			for _, f := range was {
				if !slices.Contains(set, f) { // to change a limit is not to lift it
					k.Fields = append(k.Fields, takenAway+op.named(i, f))
				}
			}
		}
		slices.Sort(k.Fields)
		k.Fields = slices.Compact(k.Fields)
		kinds = append(kinds, k)
	}
	return kinds
}

// named is a path with names for numbers where it leads through lists.
func (op Operation) named(i int, path string) string {
	if i >= len(op.Names) {
		return path
	}
	longest := ""
	for prefix := range op.Names[i] {
		if len(prefix) > len(longest) && (path == prefix || strings.HasPrefix(path, prefix+"/")) {
			longest = prefix
		}
	}
	if longest == "" {
		return path
	}
	return op.Names[i][longest] + path[len(longest):]
}

// takenAway begins a field whose value would be gone.
const takenAway = "-"

// leaves appends the pointers to the values within v that hold no others: what
// is added whole must not stand for whatever could be added there.
func leaves(fields []string, path string, v any) []string {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			fields = leaves(fields, path+"/"+action.EscapePointer(key), value)
		}
		if len(v) > 0 {
			return fields
		}
	case []any:
		for i, value := range v {
			fields = leaves(fields, path+"/"+strconv.Itoa(i), value)
		}
		if len(v) > 0 {
			return fields
		}
	}
	return append(fields, path)
}

// Granted is the Grant that the operation's votes make, if every requirement is
// met by votes that consent to the kind.
func (op Operation) Granted(id string, now time.Time) (Grant, bool) {
	consent := op
	consent.Votes = slices.DeleteFunc(slices.Clone(op.Votes), func(v Vote) bool { return !v.Approve || !v.Grant })
	if op.State != Authorized || op.GrantFor == 0 || len(op.Requirements) == 0 || consent.Missing() > 0 {
		return Grant{}, false
	}
	return Grant{
		ID: id, Revision: 1, Op: op.ID, Principal: op.Principal, Tool: op.Tool, Kinds: op.Kinds(),
		Risks: op.Risks, Votes: consent.Votes, Created: now, Expires: now.Add(op.GrantFor),
	}, true
}

// Covers reports whether an operation that people would be asked about may run
// under the grant: it is of a kind that the grant names, and those who gave it
// are those whom policy asks for now.
func (g Grant) Covers(op Operation, now time.Time) bool {
	kinds := op.Kinds()
	if g.Revoked != "" || !now.Before(g.Expires) || op.GrantFor == 0 || len(op.Requirements) == 0 || len(kinds) == 0 {
		return false
	}
	if g.Principal.Key() != op.Principal.Key() || g.Principal.Client != op.Principal.Client ||
		g.Principal.OnBehalfOf != op.Principal.OnBehalfOf || g.Tool != op.Tool {
		return false
	}
	for _, k := range kinds {
		if !slices.ContainsFunc(g.Kinds, func(have Kind) bool { return have.covers(k) }) {
			return false
		}
	}
	for _, risk := range op.Risks {
		if !slices.Contains(g.Risks, risk) {
			return false
		}
	}
	op.Votes = g.Votes
	return op.Missing() == 0
}

func (k Kind) covers(other Kind) bool {
	same := k.Cluster == other.Cluster && k.Namespace == other.Namespace && k.Verb == other.Verb &&
		k.Resource.GroupResource() == other.Resource.GroupResource() && k.Subresource == other.Subresource && k.Patch == other.Patch
	return same && len(other.Fields) > 0 &&
		!slices.ContainsFunc(other.Fields, func(f string) bool {
			_, found := slices.BinarySearch(k.Fields, f)
			return !found
		})
}

// By names the people who gave it.
func (g Grant) By() []string { return Operation{Votes: g.Votes}.By() }
