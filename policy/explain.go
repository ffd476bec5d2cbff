package policy

import (
	"fmt"
	"strings"
)

// Explanation says what one rule made of a request.
type Explanation struct {
	Rule   string `json:"rule"`
	Effect Effect `json:"effect"`
	// Applies is true when the rule led, or would lead, to its effect.
	Applies bool `json:"applies"`
	// Unknown is true when that cannot be told.
	Unknown bool `json:"unknown,omitempty"`
	// Why says which field or condition did not fit, or what could not be told.
	Why string `json:"why"`
	// Variables are those that the rule's condition names, where it was looked at.
	Variables []string `json:"variables,omitempty"`
	Guard     bool     `json:"guard,omitempty"`
	Shadow    bool     `json:"shadow,omitempty"`
}

// Explain says of every rule whether it applies to a request and why, or why not.
func (s *Set) Explain(req Request) []Explanation {
	t := targetOf(&req)
	out := make([]Explanation, len(s.rules))
	for i, r := range s.rules {
		e := Explanation{Rule: r.name, Effect: r.effect, Guard: r.guard, Shadow: r.shadow}
		if field := r.match.mismatch(&t, r.effect == Allow); field != "" {
			e.Why = r.match.explain(field, &t, r.effect == Allow)
			out[i] = e
			continue
		}
		if r.when != nil {
			e.Variables = r.when.variables
		}
		f := &facts{req: &req} // of its own, so that one rule's cost is not another's
		o := r.evaluate(f, &t)
		f.close()
		switch {
		case o.needs != 0:
			e.Unknown, e.Why = true, "cannot be told without "+o.needs.String()
		case o.err != nil:
			e.Applies, e.Why = true, fmt.Sprintf("denies, because its condition could not be evaluated: %v", o.err)
		case o.holds && r.when != nil:
			e.Applies, e.Why = true, "matches, and its condition is true"
		case o.holds:
			e.Applies, e.Why = true, "matches"
		case r.match.selector != nil && !r.match.selects(&t, req.Namespace, r.effect == Allow):
			e.Why = r.match.explain(fieldSelector, &t, r.effect == Allow)
		default:
			e.Why = "matches, and its condition is false"
		}
		out[i] = e
	}
	return out
}

func (n Need) String() string {
	var words []string
	if n&NeedNamespace != 0 {
		words = append(words, "the Namespace")
	}
	if n&NeedPreview != 0 {
		words = append(words, "a preview of the object")
	}
	return strings.Join(words, " and ")
}

// explain says why a field does not fit a request.
func (m *match) explain(field string, t *target, strict bool) string {
	fields := map[string]struct {
		patterns *patterns
		value    string
	}{
		fieldTools:        {&m.tools, t.tool},
		fieldSubjects:     {&m.subjects, t.principal.Subject},
		fieldGroups:       {&m.groups, strings.Join(t.principal.Groups, ", ")},
		fieldIssuers:      {&m.issuers, t.principal.Issuer},
		fieldClients:      {&m.clients, t.principal.Client},
		fieldClusters:     {&m.clusters, t.cluster},
		fieldVerbs:        {&m.verbs, t.verbs.String()},
		fieldResources:    {&m.resources, t.resource},
		fieldSubresources: {&m.subresources, t.subresource},
		fieldNamespaces:   {&m.namespaces, t.namespace},
		fieldNames:        {&m.names, t.name},
	}
	wide := field == fieldNamespaces && t.wide || field == fieldNames && t.name == ""
	switch {
	case field == fieldSelector && t.outside:
		return "namespaceSelector: the object lies in no namespace"
	case field == fieldSelector && t.wide:
		return fmt.Sprintf("namespaceSelector %s does not cover all of them, which the request is about", m.selector)
	case field == fieldSelector:
		return fmt.Sprintf("namespaceSelector %s does not select namespace %q", m.selector, t.namespace)
	case field == fieldVerbs && strict && m.verbSet&t.verbs != 0:
		return fmt.Sprintf("verbs %s do not cover all of %s, which the request is", &m.verbs, t.verbs)
	case field == fieldNamespaces && t.outside && strict:
		return fmt.Sprintf("namespaces %s: the object lies in none", &m.namespaces)
	case wide:
		return fmt.Sprintf("%s %s does not cover all of them, which the request is about", field, fields[field].patterns)
	}
	return fmt.Sprintf("%s %s does not match %q", field, fields[field].patterns, fields[field].value)
}

func (v verbSet) String() string {
	var list []string
	for i, verb := range verbs {
		if v&(1<<i) != 0 {
			list = append(list, verb)
		}
	}
	return strings.Join(list, " and ")
}
