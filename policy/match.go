package policy

import (
	"slices"
	"strings"

	"countersign/action"
)

// patterns is one match field: globs of which one must match, and globs
// behind "!" of which none may. An absent field matches everything.
type patterns struct {
	include, exclude []string
}

func compilePatterns(list []string) patterns {
	var p patterns
	for _, s := range list {
		if rest, not := strings.CutPrefix(s, "!"); not {
			p.exclude = append(p.exclude, rest)
		} else {
			p.include = append(p.include, s)
		}
	}
	return p
}

func (p patterns) absent() bool { return len(p.include) == 0 && len(p.exclude) == 0 }

func (p patterns) match(s string) bool {
	matches := func(pattern string) bool { return glob(pattern, s) }
	return (len(p.include) == 0 || slices.ContainsFunc(p.include, matches)) && !slices.ContainsFunc(p.exclude, matches)
}

// matchAny reports whether one of several values, such as groups, matches. An
// excluded value anywhere in the list means no match.
func (p patterns) matchAny(values []string) bool {
	if p.absent() {
		return true
	}
	for _, pattern := range p.exclude {
		if slices.ContainsFunc(values, func(s string) bool { return glob(pattern, s) }) {
			return false
		}
	}
	return len(p.include) == 0 || slices.ContainsFunc(p.include, func(pattern string) bool {
		return slices.ContainsFunc(values, func(s string) bool { return glob(pattern, s) })
	})
}

// everything reports whether the field matches every possible value.
func (p patterns) everything() bool {
	return len(p.exclude) == 0 && (len(p.include) == 0 || slices.Contains(p.include, "*"))
}

// glob matches with "*" for any run of characters, as in Kubernetes' own
// wildcards; there is no other special character.
func glob(pattern, s string) bool {
	head, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == s
	}
	if !strings.HasPrefix(s, head) {
		return false
	}
	s = s[len(head):]
	for {
		part, after, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(s, part)
		}
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s, rest = s[i+len(part):], after
	}
}

type match struct {
	subjects, groups, issuers, clients patterns
	clusters, tools, verbs             patterns
	resources, subresources            patterns
	namespaces, names                  patterns
}

func compileMatch(spec matchSpec) match {
	return match{
		subjects:     compilePatterns(spec.Principals.Subjects),
		groups:       compilePatterns(spec.Principals.Groups),
		issuers:      compilePatterns(spec.Principals.Issuers),
		clients:      compilePatterns(spec.Principals.Clients),
		clusters:     compilePatterns(spec.Clusters),
		tools:        compilePatterns(spec.Tools),
		verbs:        compilePatterns(spec.Verbs),
		resources:    compilePatterns(spec.Resources),
		subresources: compilePatterns(spec.Subresources),
		namespaces:   compilePatterns(spec.Namespaces),
		names:        compilePatterns(spec.Names),
	}
}

// caller reports whether the rule is about this principal and tool.
func (m *match) caller(p *action.Principal, tool string) bool {
	return m.tools.match(tool) && m.subjects.match(p.Subject) && m.issuers.match(p.Issuer) &&
		m.clients.match(p.Client) && m.groups.matchAny(p.Groups)
}

// request reports whether the rule is about this request. strict is true for
// an allow rule, which must be about the whole of it; a rule that restricts
// needs to be about any part of it. That matters where one request is several
// things: an apply creates or patches, a list goes over all namespaces.
func (m *match) request(a *action.Action, strict bool) bool {
	if !m.clusters.match(a.Cluster) || !m.resources.match(a.Resource.GroupResource()) || !m.subresources.match(a.Subresource) {
		return false
	}
	covered := 0
	all := a.Verbs()
	for _, verb := range all {
		if m.verbs.match(verb) {
			covered++
		}
	}
	if covered == 0 || strict && covered < len(all) {
		return false
	}
	namespace := a.Namespace
	if a.Resource.GroupResource() == "namespaces" {
		namespace = a.Name // as the API server's authorizer sees it
	}
	wideNamespace := namespace == "" && (a.Resource.Namespaced || a.Resource.GroupResource() == "namespaces")
	if strict && namespace == "" && !wideNamespace && !m.namespaces.absent() && !slices.Contains(m.namespaces.include, "") {
		return false // what is allowed in namespaces is not allowed outside of them
	}
	return part(m.namespaces, namespace, wideNamespace, strict) && part(m.names, a.Name, a.Name == "", strict)
}

// part matches a field that the request may leave open: wide means that the
// request covers every value of it.
func part(p patterns, value string, wide, strict bool) bool {
	switch {
	case !wide:
		return p.match(value)
	case strict:
		return p.everything()
	}
	return true
}

// scope reports whether some request within the scope could match.
func (m *match) scope(s action.Scope) bool {
	if s.Resource != "" && !m.resources.match(s.Resource) || !m.subresources.match(s.Subresource) {
		return false
	}
	return slices.ContainsFunc(s.Verbs, m.verbs.match)
}

// wholeScope reports whether every request within the scope matches.
func (m *match) wholeScope(s action.Scope) bool {
	if !m.clusters.everything() || !m.namespaces.everything() || !m.names.everything() || !m.subresources.match(s.Subresource) {
		return false
	}
	if s.Resource == "" && !m.resources.everything() || s.Resource != "" && !m.resources.match(s.Resource) {
		return false
	}
	return !slices.ContainsFunc(s.Verbs, func(verb string) bool { return !m.verbs.match(verb) })
}
