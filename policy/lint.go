package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"countersign/action"
)

// subresources are those that some kind has; custom resources have status and
// scale at most.
var subresources = []string{
	"", "approval", "attach", "binding", "ephemeralcontainers", "eviction", "exec", "finalize",
	"log", "portforward", "proxy", "resize", "scale", "status", "token",
}

// namespaceChars are what a namespace's name is made of; resourceChars what that
// of a resource is, its group behind the first dot.
var (
	namespaceChars = regexp.MustCompile(`^[-a-z0-9*]{0,63}$`)
	resourceChars  = regexp.MustCompile(`^[-a-z0-9.*]+$`)
)

// checkMatch finds entries that no request can match, as far as the entry alone
// shows it.
func checkMatch(spec matchSpec) []mistake {
	var mistakes []mistake
	each := func(field string, list []string, wrong func(string) string) {
		for i, entry := range list {
			if text := wrong(strings.TrimPrefix(entry, "!")); text != "" {
				mistakes = append(mistakes, mistake{[]any{"match", field, i}, text})
			}
		}
		p := compilePatterns(list)
		if len(p.include) > 0 && !slices.ContainsFunc(p.include, func(in pattern) bool {
			return !slices.ContainsFunc(p.exclude, func(out pattern) bool { return out.covers(in) })
		}) {
			mistakes = append(mistakes, mistake{[]any{"match", field}, field + " can never match: everything in it is excluded"})
		}
	}
	any := func(string) string { return "" }
	each("verbs", spec.Verbs, func(s string) string {
		if s == "*" || slices.Contains(verbs, s) {
			return ""
		}
		return fmt.Sprintf("unknown verb %q; one of %s", s, strings.Join(verbs, ", "))
	})
	each("resources", spec.Resources, func(s string) string {
		switch {
		case strings.Contains(s, "/"):
			return fmt.Sprintf("resource %q can never match: write what is behind the slash under subresources", s)
		case !resourceChars.MatchString(s):
			return fmt.Sprintf("resource %q can never match: resources are lower-case plurals with their group, such as deployments.apps", s)
		}
		return ""
	})
	each("subresources", spec.Subresources, func(s string) string {
		if slices.ContainsFunc(subresources, matches(s)) {
			return ""
		}
		return fmt.Sprintf("subresource %q can never match; there are %s", s, strings.Join(subresources[1:], ", "))
	})
	each("namespaces", spec.Namespaces, func(s string) string {
		if namespaceChars.MatchString(s) {
			return ""
		}
		return fmt.Sprintf("namespace %q can never match: names of namespaces are lower-case letters, digits and -", s)
	})
	each("names", spec.Names, func(s string) string {
		if strings.ContainsAny(s, "/%") {
			return fmt.Sprintf("name %q can never match: no object's name holds / or %%", s)
		}
		return ""
	})
	each("clusters", spec.Clusters, any)
	each("tools", spec.Tools, any)
	return mistakes
}

func matches(text string) func(string) bool {
	p := newPattern(text)
	return p.match
}

// unknown finds names of tools, clusters and resources that there are none of.
// strict is as in mismatch.
func (l *loader) unknown(spec matchSpec, strict bool) []mistake {
	var mistakes []mistake
	each := func(field string, list []string, known func(pattern) string) {
		for i, entry := range list {
			if text := known(newPattern(strings.TrimPrefix(entry, "!"))); text != "" {
				mistakes = append(mistakes, mistake{[]any{"match", field, i}, text})
			}
		}
	}
	if l.known.Clusters != nil {
		each("clusters", spec.Clusters, func(p pattern) string {
			if slices.ContainsFunc(l.known.Clusters, p.match) {
				return ""
			}
			return fmt.Sprintf("cluster %q can never match: the configuration has %s", p.text, strings.Join(l.known.Clusters, ", "))
		})
	}
	if l.known.Resources != nil {
		each("resources", spec.Resources, l.unknownResource)
	}
	if l.known.Tools == nil {
		return mistakes
	}
	each("tools", spec.Tools, func(p pattern) string {
		for name := range l.known.Tools {
			if p.match(name) {
				return ""
			}
		}
		return fmt.Sprintf("tool %q can never match: this server has no such tool", p.text)
	})
	if len(mistakes) == 0 && len(spec.Tools) > 0 {
		m, _ := compileMatch(spec)
		sends, partly := false, verbSet(0)
		for name, scopes := range l.known.Tools {
			for _, scope := range scopes {
				sends = sends || m.tools.match(name) && m.scope(scope, strict)
				if m.tools.match(name) && m.scope(scope, false) {
					partly = verbsOf(scope.Verbs)
				}
			}
		}
		if !sends {
			text := "can never match: none of its tools sends such a request"
			if partly != 0 {
				text = fmt.Sprintf("can never match: each request of its tools is %s, and what allows it must be about all of these verbs", partly)
			}
			mistakes = append(mistakes, mistake{[]any{"match", "tools"}, text})
		}
	}
	return mistakes
}

// unknownResource says what is wrong with the name of a resource. Of a group
// that is not Kubernetes' own, nothing is known.
func (l *loader) unknownResource(p pattern) string {
	s := p.text
	name, group, _ := strings.Cut(s, ".")
	if strings.Contains(s, "*") || slices.Contains(l.known.Resources, s) || !resourceChars.MatchString(s) {
		return "" // of the last, checkMatch says more
	}
	ours := group == ""
	var near []string
	for _, known := range l.known.Resources {
		other, its, _ := strings.Cut(known, ".")
		ours = ours || its == group
		if other == name || other == name+"s" || other == name+"es" {
			near = append(near, known)
		}
	}
	if !ours {
		return ""
	}
	text := fmt.Sprintf("resource %q can never match: there is none of this name", s)
	if len(near) > 0 {
		text += "; " + strings.Join(near, " or ") + " may be meant"
	}
	return text
}

// covers reports whether everything that other matches is matched by p. It may
// say no where that is so, never yes where it is not.
func (p pattern) covers(other pattern) bool { return p.match(other.text) }

// covers reports whether what the other field matches, this one matches too. It
// may say no where that is so.
func (p *patterns) covers(other *patterns) bool {
	for _, out := range p.exclude {
		if !slices.ContainsFunc(other.exclude, func(o pattern) bool { return o.covers(out) }) {
			return false
		}
	}
	if len(p.include) == 0 {
		return true
	}
	if len(other.include) == 0 {
		return p.includes("*")
	}
	return !slices.ContainsFunc(other.include, func(o pattern) bool {
		return !slices.ContainsFunc(p.include, func(in pattern) bool { return in.covers(o) })
	})
}

// covers reports whether every request that other matches is one that this one
// matches as a restricting rule does.
func (m *match) covers(other *match) bool {
	theirs := other.fields()
	for i, field := range m.fields() {
		if !field.covers(theirs[i]) {
			return false
		}
	}
	if len(m.groups.include) > 0 && len(other.groups.include) == 0 {
		return false // ["*"] is not about a principal without groups
	}
	return m.selector == nil && m.verbSet&other.verbSet == other.verbSet
}

// ofPods are the subresources that pods alone have, namesNone the verbs whose
// requests are about all objects of a kind and so bear no name.
var (
	ofPods    = []string{"attach", "exec", "log", "portforward"}
	namesNone = verbsOf([]string{action.List, "watch", "deletecollection"})
)

// never finds rules of which no request can be, by several of their fields together.
func (l *loader) never() []string {
	var warnings []string
	for _, r := range l.set.rules {
		m := &r.match
		outside := m.resources.among(l.known.Outside) && !m.resources.includes("namespaces") // which lie in themselves
		why := ""
		switch {
		case r.guard:
		case outside && m.selector != nil:
			why = "what it is about lies in no namespace, and namespaceSelector selects nothing outside of one"
		case outside && r.effect == Allow && !m.namespaces.absent() && !m.namespaces.includes(""):
			why = `what it is about lies in no namespace: write namespaces [""], or leave it out`
		case r.effect == Allow && m.verbSet&^namesNone == 0 && !m.names.everything():
			why = "requests of its verbs are about all objects of a kind, and it is about some names"
		case m.subresources.among(ofPods) && m.resources.among(l.known.Resources) && !m.resources.includes("pods"):
			why = "of what it is about, nothing has the subresource: only pods do"
		}
		if why != "" {
			warnings = append(warnings, fmt.Sprintf("%s:%d: rule %s: can never apply: %s", r.file, r.line, r.name, why))
		}
	}
	return warnings
}

// among reports whether the field includes nothing but some of these texts.
func (p *patterns) among(list []string) bool {
	return len(p.include) > 0 && !slices.ContainsFunc(p.include, func(in pattern) bool { return !slices.Contains(list, in.text) })
}

// shadowed finds rules that can have no effect, because a rule without a
// condition denies all that they are about.
func shadowed(rules []*rule) []string {
	var warnings []string
	for _, r := range rules {
		if r.guard || r.effect == Deny {
			continue
		}
		for _, deny := range rules {
			if deny.effect != Deny || deny.when != nil || deny.shadow && !r.shadow || !deny.match.covers(&r.match) {
				continue
			}
			text := fmt.Sprintf("%s:%d: rule %s: has no effect: rule %s denies all that it is about", r.file, r.line, r.name, deny.name)
			if deny.guard {
				text += "; the guard is switched off by its name under guardsOff"
			}
			warnings = append(warnings, text)
			break
		}
	}
	return warnings
}
