package policy

import (
	"crypto/sha256"
	_ "embed" // guards.yaml
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"countersign/action"
	"countersign/approvals"
	"countersign/strictyaml"
)

// apiVersion and kind of a policy document.
const (
	apiVersion = "countersign/v1alpha1"
	kind       = "Policy"
)

// file is one YAML document. Rule order does not matter, in a file or between files.
type file struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	Metadata   struct {
		Name string `yaml:"name"`
	} `yaml:"metadata"`
	Spec struct {
		// Mode is enforce, which is also meant when it is absent, or shadow: the
		// rules and limits are decided and recorded, and refuse nothing.
		Mode   string      `yaml:"mode"`
		Rules  []ruleSpec  `yaml:"rules"`
		Limits []limitSpec `yaml:"limits"`
		// GuardsOff names built-in guards that are not in force.
		GuardsOff []string `yaml:"guardsOff"`
	} `yaml:"spec"`
}

// ruleSpec is one rule as written.
type ruleSpec struct {
	// Name is how decisions, records and errors call the rule; unique in the set.
	Name string `yaml:"name"`
	// Effect is allow, require_approval or deny.
	Effect string `yaml:"effect"`
	// Match says which requests the rule is about. Every field that is given
	// must match; entries within one are alternatives.
	Match matchSpec `yaml:"match"`
	// When is a CEL expression that must be true as well; docs/policy.md has its
	// variables.
	When string `yaml:"when"`
	// Message is what a refused caller is told, and an approver is shown.
	Message string `yaml:"message"`
	// Approval says who must agree; only with require_approval.
	Approval *approvalSpec `yaml:"approval"`
}

type approvalSpec struct {
	// Approvers are names of approver sets from the configuration.
	Approvers []string `yaml:"approvers"`
	// Count is how many distinct people must agree; 1 when absent.
	Count *strictyaml.Int `yaml:"count"`
	// Expires is how long the question stays open; 15m when absent.
	Expires time.Duration `yaml:"expires"`
	// Reason is "required" when every approver must say why.
	Reason string `yaml:"reason"`
	// Grant is "never" when an answer is for the one call only; "allowed", which
	// is also meant when it is absent, lets an approver consent to the kind of
	// call for a time, within the bounds of Set.Grantable.
	Grant string `yaml:"grant"`
	// Channel is the id of the Slack channel where people are asked; when absent,
	// it is that of the configuration.
	Channel string `yaml:"channel"`
}

type matchSpec struct {
	Principals struct {
		Subjects []string `yaml:"subjects"`
		Groups   []string `yaml:"groups"`
		Issuers  []string `yaml:"issuers"`
		Clients  []string `yaml:"clients"`
	} `yaml:"principals"`
	Clusters     []string `yaml:"clusters"`
	Tools        []string `yaml:"tools"`
	Verbs        []string `yaml:"verbs"`
	Resources    []string `yaml:"resources"`
	Subresources []string `yaml:"subresources"`
	Namespaces   []string `yaml:"namespaces"`
	Names        []string `yaml:"names"`
	// NamespaceSelector selects by the labels of the request's Namespace, as it
	// is now in the cluster.
	NamespaceSelector *selectorSpec `yaml:"namespaceSelector"`
}

// selectorSpec is a metav1.LabelSelector.
type selectorSpec struct {
	MatchLabels      map[string]string `yaml:"matchLabels"`
	MatchExpressions []struct {
		Key      string   `yaml:"key"`
		Operator string   `yaml:"operator"`
		Values   []string `yaml:"values"`
	} `yaml:"matchExpressions"`
}

// verbs are those that rules may name: what the API server authorizes.
var verbs = []string{action.Get, action.List, "watch", action.Create, action.Update, action.Patch, action.Delete, "deletecollection"}

// Known is what rules may name. A nil list is not checked against.
type Known struct {
	// Approvers and Clusters are what the configuration defines.
	Approvers, Clusters []string
	// Tools are the tools that this server has, with what each can do at most.
	Tools map[string][]action.Scope
	// Resources are the names (action.Resource.GroupResource) of the kinds that
	// every cluster has; those of Outside among them lie in no namespace.
	Resources, Outside []string
}

// guards are the built-in rules and limits. They are read by the same code.
//
//go:embed guards.yaml
var guards []byte

// guardPrefix begins the names of the built-in guards, and of nothing else.
const guardPrefix = "guard:"

// loader gathers what is wrong while the files are read.
type loader struct {
	set      *Set
	known    Known
	names    map[string]strictyaml.Problem // where each name was first given
	off      map[string]strictyaml.Problem // guards switched off, and where
	problems strictyaml.Problems
}

// Load reads and compiles every *.yaml and *.yml file of a directory, except
// tests (*_test.yaml) and hidden files, and the built-in guards. Approver sets,
// clusters, tools and kinds that rules name must be known. The error lists every
// mistake of every file; a directory without a rule is a mistake, because it
// would deny everything and nobody would mean that.
func Load(dir fs.FS, known Known) (*Set, error) {
	files, digest, err := read(dir)
	if err != nil {
		return nil, err
	}
	l := loader{set: &Set{digest: digest}, known: known, names: map[string]strictyaml.Problem{}, off: map[string]strictyaml.Problem{}}
	for _, f := range files {
		l.read(f.name, f.data, false)
	}
	if len(l.problems) == 0 && len(l.set.rules) == 0 {
		return nil, errors.New("holds no policy rule: everything would be denied; put at least one *.yaml file with kind: Policy there")
	}
	l.read("guards.yaml", guards, true)
	for name, where := range l.off {
		if _, ok := l.names[name]; !ok || !strings.HasPrefix(name, guardPrefix) {
			where.Text = fmt.Sprintf("guardsOff: there is no guard %q", name)
			l.problems = append(l.problems, where)
		}
	}
	if len(l.problems) > 0 {
		return nil, l.problems
	}
	l.set.ids = number(l.set.rules)
	l.set.guardsOff = slices.Sorted(maps.Keys(l.off))
	l.set.warnings = append(l.never(), shadowed(l.set.rules)...)
	return l.set, nil
}

// Digest is that of the set that Load would make of a directory, whether it is
// one or not: another digest means that something was changed.
func Digest(dir fs.FS) (string, error) {
	_, digest, err := read(dir)
	return digest, err
}

type source struct {
	name string
	data []byte
}

// read gives the policy files of a directory, and the digest over them and the
// built-in guards.
func read(dir fs.FS) ([]source, string, error) {
	entries, err := fs.ReadDir(dir, ".")
	if err != nil {
		var open *fs.PathError
		if errors.As(err, &open) { // which calls the folder "."
			err = open.Err
		}
		return nil, "", fmt.Errorf("reading policy directory: %w", err)
	}
	var files []source
	hash := sha256.New()
	for _, entry := range entries {
		if entry.IsDir() || !isPolicy(entry.Name()) {
			continue
		}
		data, err := strictyaml.ReadFile(dir, entry.Name())
		if err != nil {
			return nil, "", fmt.Errorf("reading policy: %w", err)
		}
		fmt.Fprintf(hash, "%s %d\n", entry.Name(), len(data))
		hash.Write(data)
		files = append(files, source{entry.Name(), data})
	}
	hash.Write(guards)
	return files, "sha256:" + hex.EncodeToString(hash.Sum(nil)), nil
}

// isPolicy reports whether a file of the folder is part of the policy.
func isPolicy(name string) bool {
	base, yaml := strings.CutSuffix(name, ".yaml")
	if !yaml {
		base, yaml = strings.CutSuffix(name, ".yml")
	}
	return yaml && !strings.HasSuffix(base, "_test") && !strings.HasPrefix(name, ".")
}

// read checks one file and compiles its rules into the set.
func (l *loader) read(name string, data []byte, guard bool) {
	var files []*file
	documents, err := strictyaml.Decode(name, data, func() any {
		files = append(files, &file{})
		return files[len(files)-1]
	})
	var found strictyaml.Problems
	if errors.As(err, &found) {
		l.problems = append(l.problems, found...)
	}
	for i, document := range documents {
		if len(found) == 0 {
			l.problems = append(l.problems, document.Empty()...)
		}
		l.add(document, files[i], guard)
	}
}

// add checks one document and compiles its rules into the set.
func (l *loader) add(document *strictyaml.Document, f *file, guard bool) {
	report := func(path []any, format string, args ...any) {
		l.problems = append(l.problems, document.Problem(path, format, args...))
	}
	if f.APIVersion != apiVersion {
		report([]any{"apiVersion"}, "apiVersion is %q; %q is understood", f.APIVersion, apiVersion)
	}
	if f.Kind != kind {
		report([]any{"kind"}, "kind is %q; %q is understood", f.Kind, kind)
	}
	if f.Metadata.Name == "" {
		report([]any{"metadata"}, "metadata.name is missing")
	}
	shadow := f.Spec.Mode == "shadow"
	if f.Spec.Mode != "" && f.Spec.Mode != "enforce" && !shadow {
		report([]any{"spec", "mode"}, "mode is %q; enforce or shadow", f.Spec.Mode)
	}
	for i, name := range f.Spec.GuardsOff {
		if l.off[name] = document.Problem([]any{"spec", "guardsOff", i}, ""); shadow {
			report([]any{"spec", "guardsOff"}, "guardsOff takes effect at once: put it into a document in mode enforce")
		}
	}
	for i, spec := range f.Spec.Rules {
		at, ok := l.name(document, guard, "rule", spec.Name, "spec", "rules", i)
		if !ok {
			continue
		}
		r, mistakes := compile(spec)
		if !guard { // a guard may name a tool that not every version has
			mistakes = append(mistakes, l.unknown(spec.Match, r.effect == Allow)...)
		}
		for i, name := range approversOf(spec) {
			if l.known.Approvers != nil && !slices.Contains(l.known.Approvers, name) {
				mistakes = append(mistakes, mistake{[]any{"approval", "approvers", i}, fmt.Sprintf("approver set %q is not defined under approvers in the configuration", name)})
			}
		}
		for _, m := range mistakes {
			report(append(at, m.path...), "rule %s: %s", spec.Name, m.text)
		}
		r.shadow, r.guard, r.file, r.line = shadow, guard, document.File, document.Problem(at, "").Line
		l.set.rules = append(l.set.rules, r)
		l.set.shadows = l.set.shadows || shadow
	}
	for i, spec := range f.Spec.Limits {
		at, ok := l.name(document, guard, "limit", spec.Name, "spec", "limits", i)
		if !ok {
			continue
		}
		limit, mistakes := compileLimit(spec)
		for _, m := range append(mistakes, l.unknown(spec.Match, false)...) {
			report(append(at, m.path...), "limit %s: %s", spec.Name, m.text)
		}
		limit.Shadow = shadow
		l.set.limits = append(l.set.limits, limit)
	}
}

// name checks the name of a rule or limit, and reports whether it is to be
// added: a guard that is switched off is not.
func (l *loader) name(document *strictyaml.Document, guard bool, what, name string, at ...any) ([]any, bool) {
	at = slices.Clip(at)
	here := document.Problem(append(at, "name"), "")
	report := func(where strictyaml.Problem, format string, args ...any) {
		where.Text = fmt.Sprintf(format, args...)
		l.problems = append(l.problems, where)
	}
	first, dup := l.names[name]
	switch {
	case name == "":
		report(document.Problem(at, ""), "%s %d has no name", what, at[len(at)-1].(int)+1)
		return at, false
	case strings.ContainsFunc(name, hidden):
		report(here, "%s %d: name %+q holds a character that cannot be seen", what, at[len(at)-1].(int)+1, name)
		return at, false
	case utf8.RuneCountInString(name) > maxName:
		report(here, "%s %d: name is longer than %d characters", what, at[len(at)-1].(int)+1, maxName)
		return at, false
	case dup:
		where := here
		where.First = &first
		report(where, "%s %s: name is used already", what, name)
	case !guard && strings.HasPrefix(name, guardPrefix):
		report(here, "%s %s: names that begin with %q are those of the built-in guards", what, name, guardPrefix)
		return at, false
	}
	l.names[name] = here
	_, off := l.off[name]
	return at, !guard || !off
}

// maxName bounds the name of a rule or limit, in characters: it stands in every
// record of what it decided.
const maxName = 100

// hidden reports whether a character shows nothing, or moves others about: a
// name is shown on terminals and to approvers.
func hidden(r rune) bool {
	const emptyBraille = '\u2800'
	return !unicode.IsPrint(r) || r == emptyBraille || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

func approversOf(spec ruleSpec) []string {
	if spec.Approval == nil {
		return nil
	}
	return spec.Approval.Approvers
}

// mistake is a problem within one rule; path starts at the rule.
type mistake struct {
	path []any
	text string
}

func compile(spec ruleSpec) (*rule, []mistake) {
	var mistakes []mistake
	bad := func(text string, path ...any) { mistakes = append(mistakes, mistake{path, text}) }
	r := &rule{name: spec.Name, effect: Effect(spec.Effect), message: spec.Message}
	var err error
	if r.match, err = compileMatch(spec.Match); err != nil {
		bad("namespaceSelector: "+err.Error(), "match", "namespaceSelector")
	}

	switch r.effect {
	case Allow, Deny:
		if spec.Approval != nil {
			bad("approval is for effect require_approval only", "approval")
		}
	case RequireApproval:
		if spec.Approval == nil || len(spec.Approval.Approvers) == 0 {
			bad("require_approval needs approval.approvers", "approval")
			break
		}
		r.approval = Approval{Rule: spec.Name, Approvers: spec.Approval.Approvers, Count: 1, Expires: 15 * time.Minute, ReasonRequired: spec.Approval.Reason == "required"}
		if n := spec.Approval.Count; n != nil {
			if *n < 1 {
				bad("approval.count must be at least 1", "approval", "count")
			}
			r.approval.Count = int(*n)
		}
		if d := spec.Approval.Expires; d < 0 {
			bad("approval.expires must be more than 0", "approval", "expires")
		} else if d > 0 {
			r.approval.Expires = d
		}
		if w := spec.Approval.Reason; w != "" && w != "required" && w != "optional" {
			bad(fmt.Sprintf("approval.reason is %q; required or optional", w), "approval", "reason")
		}
		if g := spec.Approval.Grant; g != "" && g != "never" && g != "allowed" {
			bad(fmt.Sprintf("approval.grant is %q; never or allowed", g), "approval", "grant")
		}
		r.approval.NoGrant = spec.Approval.Grant == "never"
		if r.approval.Channel = spec.Approval.Channel; r.approval.Channel != "" && !approvals.SlackChannel.MatchString(r.approval.Channel) {
			bad(fmt.Sprintf("approval.channel is %q; the id of the channel is wanted, such as C0123ABCD, and not its name: in Slack, click the channel's name; the id stands at the end of the tab About", r.approval.Channel), "approval", "channel")
		}
	case "":
		bad("effect is missing: allow, require_approval or deny", "effect")
	default:
		bad(fmt.Sprintf("effect is %q; allow, require_approval or deny", spec.Effect), "effect")
	}
	mistakes = append(mistakes, checkMatch(spec.Match)...)
	if spec.When != "" {
		if r.when, err = compileCondition(spec.When); err != nil {
			bad("when: "+err.Error(), "when")
		}
	}
	return r, mistakes
}
