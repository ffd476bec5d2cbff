package policy

import (
	"fmt"
	"strings"

	"countersign/action"
)

// Info sums a set up for people.
type Info struct {
	// Rules and Limits count what the files say, without the built-in guards.
	Rules  int `json:"rules"`
	Limits int `json:"limits"`
	// GuardsOff are the built-in guards that are not in force.
	GuardsOff []string `json:"guardsOff,omitempty"`
}

// Info sums the set up.
func (s *Set) Info() Info {
	info := Info{GuardsOff: s.guardsOff}
	for _, r := range s.rules {
		if !r.guard {
			info.Rules++
		}
	}
	for _, l := range s.limits {
		if !strings.HasPrefix(l.Name, guardPrefix) {
			info.Limits++
		}
	}
	return info
}

// About lists, in words and one a line, the rules and limits that are about a
// principal, whatever it asks for. Conditions are not repeated, only that there
// is one.
func (s *Set) About(p *action.Principal) []string {
	var out []string
	for _, r := range s.rules {
		if r.shadow || r.match.principal(p) != "" {
			continue
		}
		if r.guard { // what it is about is in its message
			out = append(out, fmt.Sprintf("%s: %s. %s", r.effect, r.name, r.message))
			continue
		}
		text := fmt.Sprintf("%s: %s%s", r.effect, r.name, r.match.about())
		if r.when != nil {
			text += ", under a condition"
		}
		if r.effect == RequireApproval {
			text += fmt.Sprintf(", by %d of %s within %s", r.approval.Count, strings.Join(r.approval.Approvers, " or "), r.approval.Expires)
			if r.approval.NoGrant {
				text += ", no grants"
			}
		}
		if r.message != "" {
			text += ". " + r.message
		}
		out = append(out, text)
	}
	for _, l := range s.limits {
		if l.Shadow || l.match.principal(p) != "" {
			continue
		}
		out = append(out, fmt.Sprintf("limit: %s%s, %d in %s by %s", l.Name, l.match.about(), l.Calls, l.Per, l.By))
	}
	return out
}

// about lists the fields of a match that say something, but not whom it is about.
func (m *match) about() string {
	var b strings.Builder
	for _, field := range []struct {
		name     string
		patterns *patterns
	}{
		{"clusters", &m.clusters}, {"tools", &m.tools}, {"verbs", &m.verbs}, {"resources", &m.resources},
		{"subresources", &m.subresources}, {"namespaces", &m.namespaces}, {"names", &m.names},
	} {
		if !field.patterns.absent() {
			fmt.Fprintf(&b, " %s %s", field.name, field.patterns)
		}
	}
	if m.selector != nil {
		fmt.Fprintf(&b, " namespaces with %s", m.selector)
	}
	return b.String()
}
