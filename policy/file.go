package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"countersign/action"
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
		Rules []ruleSpec `yaml:"rules"`
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
	// When is a CEL expression over principal, tool, args, action, object,
	// oldObject, diff and now that must be true as well.
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
}

// verbs are those that rules may name: what the API server authorizes.
var verbs = []string{action.Get, action.List, "watch", action.Create, action.Update, action.Patch, action.Delete, "deletecollection"}

// Load reads and compiles every *.yaml and *.yml file of a directory, except
// tests (*_test.yaml). approvers are the names of the approver sets that the
// configuration defines. The error lists every mistake of every file; a
// directory without a rule is a mistake, because it would deny everything and
// nobody would mean that.
func Load(dir fs.FS, approvers []string) (*Set, error) {
	names, err := fs.ReadDir(dir, ".")
	if err != nil {
		return nil, fmt.Errorf("reading policy directory: %w", err)
	}
	set := &Set{}
	hash := sha256.New()
	lines := map[string]strictyaml.Problem{}
	var problems strictyaml.Problems
	for _, entry := range names {
		name := entry.Name()
		yaml := strings.HasSuffix(name, ".yaml") || strings.HasSuffix(name, ".yml")
		if entry.IsDir() || !yaml || strings.HasSuffix(strings.TrimSuffix(strings.TrimSuffix(name, ".yaml"), ".yml"), "_test") || strings.HasPrefix(name, ".") {
			continue
		}
		data, err := fs.ReadFile(dir, name)
		if err != nil {
			return nil, fmt.Errorf("reading policy: %w", err)
		}
		fmt.Fprintf(hash, "%s %d\n", name, len(data))
		hash.Write(data)

		var files []*file
		documents, err := strictyaml.Decode(name, data, func() any {
			files = append(files, &file{})
			return files[len(files)-1]
		})
		var found strictyaml.Problems
		if errors.As(err, &found) {
			problems = append(problems, found...)
		}
		for i, document := range documents {
			if len(found) == 0 {
				problems = append(problems, document.Empty()...)
			}
			problems = append(problems, set.add(document, files[i], approvers, lines)...)
		}
	}
	if len(problems) > 0 {
		return nil, problems
	}
	if len(set.rules) == 0 {
		return nil, errors.New("holds no policy rule: everything would be denied; put at least one *.yaml file with kind: Policy there")
	}
	set.digest = "sha256:" + hex.EncodeToString(hash.Sum(nil))
	return set, nil
}

// add checks one document and compiles its rules into the set.
func (s *Set) add(document *strictyaml.Document, f *file, approvers []string, seen map[string]strictyaml.Problem) (problems strictyaml.Problems) {
	report := func(path []any, format string, args ...any) {
		problems = append(problems, document.Problem(path, format, args...))
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
	for i, spec := range f.Spec.Rules {
		at := func(path ...any) []any { return append([]any{"spec", "rules", i}, path...) }
		complain := func(path []any, format string, args ...any) {
			report(path, "rule %s: %s", spec.Name, fmt.Sprintf(format, args...))
		}
		if spec.Name == "" {
			report(at(), "rule %d has no name", i+1)
			continue
		}
		here := document.Problem(at("name"), "")
		if first, dup := seen[spec.Name]; dup {
			complain(at("name"), "name is used already, at %s:%d", first.File, first.Line)
		}
		seen[spec.Name] = here
		r, errs := compile(spec)
		for _, e := range errs {
			complain(at(e.path...), "%s", e.text)
		}
		if spec.Approval != nil {
			for _, name := range spec.Approval.Approvers {
				if !slices.Contains(approvers, name) {
					complain(at("approval", "approvers"), "approver set %q is not defined under approvers in the configuration", name)
				}
			}
		}
		s.rules = append(s.rules, r)
	}
	return problems
}

// mistake is a problem within one rule; path starts at the rule.
type mistake struct {
	path []any
	text string
}

func compile(spec ruleSpec) (*rule, []mistake) {
	var mistakes []mistake
	bad := func(text string, path ...any) { mistakes = append(mistakes, mistake{path, text}) }
	r := &rule{name: spec.Name, effect: Effect(spec.Effect), message: spec.Message, match: compileMatch(spec.Match)}

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
	case "":
		bad("effect is missing: allow, require_approval or deny", "effect")
	default:
		bad(fmt.Sprintf("effect is %q; allow, require_approval or deny", spec.Effect), "effect")
	}
	for _, verb := range spec.Match.Verbs {
		verb = strings.TrimPrefix(verb, "!")
		if verb != "*" && !slices.Contains(verbs, verb) {
			bad(fmt.Sprintf("unknown verb %q; one of %s", verb, strings.Join(verbs, ", ")), "match", "verbs")
		}
	}
	if spec.When != "" {
		var err error
		if r.when, err = compileCondition(spec.When); err != nil {
			bad("when: "+err.Error(), "when")
		}
	}
	return r, mistakes
}
