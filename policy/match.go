package policy

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"countersign/action"
)

// pattern is one entry of a match field: a text in which "*" stands for any run
// of characters. There is no other special character.
type pattern struct {
	text string
	// head is what stands before the first "*", or the whole text.
	head string
	star bool // there is a "*"
	tail bool // there is more behind it
}

func newPattern(text string) pattern {
	head, tail, star := strings.Cut(text, "*")
	return pattern{text, head, star, tail != ""}
}

func (p *pattern) match(s string) bool {
	switch {
	case !p.star:
		return p.text == s
	case !strings.HasPrefix(s, p.head):
		return false
	}
	return !p.tail || glob(p.text, s)
}

// glob matches with "*" for any run of characters, as in Kubernetes' own wildcards.
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

// patterns is one match field: patterns of which one must match, and patterns
// behind "!" of which none may. An absent field matches everything.
type patterns struct {
	include, exclude []pattern
	id               int // that of all equal fields of a Set; 0 is none
}

func compilePatterns(list []string) patterns {
	var p patterns
	for _, s := range list {
		if rest, not := strings.CutPrefix(s, "!"); not {
			p.exclude = append(p.exclude, newPattern(rest))
		} else {
			p.include = append(p.include, newPattern(s))
		}
	}
	return p
}

func (p *patterns) absent() bool { return len(p.include) == 0 && len(p.exclude) == 0 }

func (p *patterns) match(s string) bool {
	for i := range p.exclude {
		if p.exclude[i].match(s) {
			return false
		}
	}
	for i := range p.include {
		if p.include[i].match(s) {
			return true
		}
	}
	return len(p.include) == 0
}

// matchAny reports whether one of several values, such as groups, matches. An
// excluded value anywhere in the list means no match.
func (p *patterns) matchAny(values []string) bool {
	for i := range p.exclude {
		if slices.ContainsFunc(values, p.exclude[i].match) {
			return false
		}
	}
	for i := range p.include {
		if slices.ContainsFunc(values, p.include[i].match) {
			return true
		}
	}
	return len(p.include) == 0
}

// everything reports whether the field matches every possible value.
func (p *patterns) everything() bool {
	return len(p.exclude) == 0 && (len(p.include) == 0 || p.includes("*"))
}

// includes reports whether this very text is one of the entries.
func (p *patterns) includes(text string) bool {
	return slices.ContainsFunc(p.include, func(in pattern) bool { return in.text == text })
}

func (p *patterns) String() string {
	all := texts(p.include)
	for _, s := range texts(p.exclude) {
		all = append(all, "!"+s)
	}
	return "[" + strings.Join(all, ", ") + "]"
}

func texts(list []pattern) []string {
	out := make([]string, len(list))
	for i, p := range list {
		out[i] = p.text
	}
	return out
}

// verbSet is a set of the verbs, one bit each in the order of verbs.
type verbSet uint16

func verbsMatching(p patterns) (set verbSet) {
	for i, verb := range verbs {
		if p.match(verb) {
			set |= 1 << i
		}
	}
	return set
}

func verbsOf(list []string) (set verbSet) {
	for _, verb := range list {
		i := slices.Index(verbs, verb)
		if i < 0 {
			return 0 // a verb that rules cannot name is not allowed by any
		}
		set |= 1 << i
	}
	return set
}

type match struct {
	subjects, groups, issuers, clients patterns
	clusters, tools, verbs             patterns
	resources, subresources            patterns
	namespaces, names                  patterns
	verbSet                            verbSet
	// selector is nil where the rule has no namespaceSelector.
	selector labels.Selector
}

func compileMatch(spec matchSpec) (match, error) {
	m := match{
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
	m.verbSet = verbsMatching(m.verbs)
	if spec.NamespaceSelector == nil {
		return m, nil
	}
	selector := metav1.LabelSelector{MatchLabels: spec.NamespaceSelector.MatchLabels}
	for _, e := range spec.NamespaceSelector.MatchExpressions {
		selector.MatchExpressions = append(selector.MatchExpressions, metav1.LabelSelectorRequirement{
			Key: e.Key, Operator: metav1.LabelSelectorOperator(e.Operator), Values: e.Values,
		})
	}
	var err error
	m.selector, err = metav1.LabelSelectorAsSelector(&selector)
	return m, err
}

// fields are the match fields, but for the verbs.
func (m *match) fields() []*patterns {
	return []*patterns{
		&m.subjects, &m.groups, &m.issuers, &m.clients, &m.clusters, &m.tools,
		&m.resources, &m.subresources, &m.namespaces, &m.names,
	}
}

// number gives equal fields of the rules the same id, so that a decision looks
// at each once, and returns the number of ids. Of 500 rules most say the same
// about resources and groups.
func number(rules []*rule) int {
	ids := map[string]int{}
	for _, r := range rules {
		for i, p := range r.match.fields() {
			key := fmt.Sprintf("%d %q %q", i, texts(p.include), texts(p.exclude))
			if ids[key] == 0 {
				ids[key] = len(ids) + 1
			}
			p.id = ids[key]
		}
	}
	return len(ids)
}

// target is what match looks at in a request, worked out once for all rules.
type target struct {
	fit []fit // of each id, as far as it is known

	principal                            *action.Principal
	tool                                 string
	cluster, resource, subresource, name string
	verbs                                verbSet
	// namespace is where the object lies. wide means that the request is about
	// every namespace; outside, that its object lies in none.
	namespace     string
	wide, outside bool
}

func targetOf(req *Request) target {
	a := req.Action
	t := target{
		principal: req.Principal, tool: req.Tool,
		cluster: a.Cluster, resource: a.Resource.GroupResource(), subresource: a.Subresource, name: a.Name,
		verbs: verbsOf(a.Verbs()), namespace: NamespaceOf(a),
	}
	if t.namespace == "" {
		t.wide = a.Resource.Namespaced || t.resource == "namespaces"
		t.outside = !t.wide
	}
	return t
}

type fit uint8

const (
	fitUnknown fit = iota
	fits
	fitsNot
)

// fits is p.match(value), where value is what p is about in the request.
func (t *target) fits(p *patterns, value string) bool {
	if p.absent() {
		return true
	}
	if p.id == 0 || t.fit == nil {
		return p.match(value)
	}
	known := &t.fit[p.id-1]
	if *known == fitUnknown {
		if *known = fitsNot; p.match(value) {
			*known = fits
		}
	}
	return *known == fits
}

// NamespaceOf is the namespace that a request is about; a Namespace lies in
// itself, as the API server's authorizer sees it. Empty is none, or all.
func NamespaceOf(a *action.Action) string {
	if a.Resource.Group == "" && a.Resource.Resource == "namespaces" {
		return a.Name
	}
	return a.Namespace
}

// The match fields, as mismatch names them.
const (
	fieldTools        = "tools"
	fieldSubjects     = "principals.subjects"
	fieldGroups       = "principals.groups"
	fieldIssuers      = "principals.issuers"
	fieldClients      = "principals.clients"
	fieldClusters     = "clusters"
	fieldVerbs        = "verbs"
	fieldResources    = "resources"
	fieldSubresources = "subresources"
	fieldNamespaces   = "namespaces"
	fieldNames        = "names"
	fieldSelector     = "namespaceSelector"
)

// caller names the first field by which the rule is not about this principal
// and tool, or is empty.
func (m *match) caller(p *action.Principal, tool string) string {
	if !m.tools.match(tool) {
		return fieldTools
	}
	return m.principal(p)
}

func (m *match) principal(p *action.Principal) string {
	switch {
	case !m.subjects.match(p.Subject):
		return fieldSubjects
	case !m.issuers.match(p.Issuer):
		return fieldIssuers
	case !m.clients.match(p.Client):
		return fieldClients
	case !m.groups.matchAny(p.Groups):
		return fieldGroups
	}
	return ""
}

// mismatch names the first field by which the rule is not about this request,
// or is empty; the namespaceSelector comes later, because it needs the
// Namespace. strict is true for an allow rule, which must be about the whole of
// the request; a rule that restricts needs to be about any part of it. That
// matters where one request is several things: an apply creates or patches, a
// list goes over all namespaces.
func (m *match) mismatch(t *target, strict bool) string {
	switch {
	case !m.verbSet.covers(t.verbs, strict):
		return fieldVerbs
	case !t.fits(&m.resources, t.resource):
		return fieldResources
	case !t.fits(&m.subresources, t.subresource):
		return fieldSubresources
	case !t.fits(&m.clusters, t.cluster):
		return fieldClusters
	case !m.namespaces.absent() && !m.within(t, strict):
		return fieldNamespaces
	case !t.part(&m.names, t.name, t.name == "", strict):
		return fieldNames
	}
	return m.caller(t.principal, t.tool)
}

func (m *match) within(t *target, strict bool) bool {
	if strict && t.outside && !m.namespaces.includes("") {
		return false // what is allowed in namespaces is not allowed outside of them
	}
	return t.part(&m.namespaces, t.namespace, t.wide, strict)
}

// part matches a field that the request may leave open: wide means that the
// request covers every value of it.
func (t *target) part(p *patterns, value string, wide, strict bool) bool {
	switch {
	case !wide:
		return t.fits(p, value)
	case strict:
		return p.everything()
	}
	return true
}

// selects reports whether the namespaceSelector is about the request, given its
// Namespace. What lies in no namespace is not selected; what is about all
// namespaces, or about one that is not there, only by a rule that restricts.
func (m *match) selects(t *target, namespace map[string]any, strict bool) bool {
	switch {
	case m.selector == nil:
		return true
	case t.outside:
		return false
	case t.wide || namespace == nil:
		return !strict
	}
	set := labels.Set{}
	meta, _ := namespace["metadata"].(map[string]any)
	all, _ := meta["labels"].(map[string]any)
	for key, value := range all {
		set[key], _ = value.(string)
	}
	return m.selector.Matches(set)
}

// covers reports whether the match is about a request of these verbs. strict is
// as in mismatch.
func (v verbSet) covers(verbs verbSet, strict bool) bool {
	covered := v & verbs
	return covered != 0 && (!strict || covered == verbs)
}

// scope reports whether some request within the scope could match. strict is as
// in mismatch.
func (m *match) scope(s action.Scope, strict bool) bool {
	if s.Resource != "" && !m.resources.match(s.Resource) || !m.subresources.match(s.Subresource) {
		return false
	}
	return m.verbSet.covers(verbsOf(s.Verbs), strict)
}

// wholeScope reports whether every request within the scope matches as a
// restricting rule does, in one cluster or, where that is "", in any.
func (m *match) wholeScope(cluster string, s action.Scope) bool {
	if !m.clusters.everything() && (cluster == "" || !m.clusters.match(cluster)) {
		return false
	}
	if !m.namespaces.everything() || !m.names.everything() || m.selector != nil || !m.subresources.match(s.Subresource) {
		return false
	}
	if s.Resource == "" && !m.resources.everything() || s.Resource != "" && !m.resources.match(s.Resource) {
		return false
	}
	return m.verbSet.covers(verbsOf(s.Verbs), false)
}
