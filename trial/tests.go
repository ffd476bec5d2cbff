package trial

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"countersign/action"
	"countersign/policy"
	"countersign/strictyaml"
)

// apiVersion and kind of a document of cases.
const (
	apiVersion = "countersign/v1alpha1"
	kind       = "PolicyTest"
)

// Noon is when a case happens that does not say when: a Monday.
var Noon = time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)

// document is one YAML document. A file can hold several.
type document struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	// Resources are kinds that are not Kubernetes' own.
	Resources []resourceSpec `yaml:"resources"`
	Cases     []caseSpec     `yaml:"cases"`
}

type resourceSpec struct {
	Group      string `yaml:"group"`
	Version    string `yaml:"version"`
	Kind       string `yaml:"kind"`
	Resource   string `yaml:"resource"` // plural, lower case
	Namespaced bool   `yaml:"namespaced"`
}

// caseSpec is one call and what policy is to say of it.
type caseSpec struct {
	// Name is how results call the case; unique in the file.
	Name      string         `yaml:"name"`
	Principal *principalSpec `yaml:"principal"`
	// Cluster is the one that the call is about; the first, or only, one when absent.
	Cluster string `yaml:"cluster"`
	// Call is a tool with its arguments; Manifest, instead, a text that is applied.
	Call *struct {
		Tool string    `yaml:"tool"`
		Args yaml.Node `yaml:"args"`
	} `yaml:"call"`
	Manifest string `yaml:"manifest"`
	// Live are the objects that are there.
	Live []yaml.Node `yaml:"live"`
	// Result is what the API server would answer to the dry runs, one object for
	// each request; null, like an absent list, leaves it to be estimated.
	Result []yaml.Node `yaml:"result"`
	// Namespaces gives labels; Absent lists namespaces that are not there. All
	// others are there and have none.
	Namespaces map[string]map[string]string `yaml:"namespaces"`
	Absent     []string                     `yaml:"absent"`
	// Now is an RFC 3339 time; Noon when absent.
	Now    string `yaml:"now"`
	Expect struct {
		// Decision is allow, require_approval, deny, or error for a call that
		// cannot be understood or that the API server would refuse.
		Decision string `yaml:"decision"`
		// Rules are all that led to it, in any order; [] is none. They are not
		// compared when absent.
		Rules yaml.Node `yaml:"rules"`
		// Reason is a part of what the caller is told.
		Reason string `yaml:"reason"`
	} `yaml:"expect"`
}

type principalSpec struct {
	Issuer string `yaml:"issuer"`
	// Subject is the user name when absent.
	Subject    string   `yaml:"subject"`
	Username   string   `yaml:"username"`
	Groups     []string `yaml:"groups"`
	Client     string   `yaml:"client"`
	OnBehalfOf string   `yaml:"onBehalfOf"`
}

// Case is a call and what policy is to say of it.
type Case struct {
	Name string
	// File and Line are where it stands.
	File string
	Line int
	Call Call
	Want Want
}

// Want is what a case expects.
type Want struct {
	Decision string
	Rules    []string // nil when any will do
	Reason   string   // a part of the reason
}

// Check says what of an answer is not as wanted; empty when all is.
func (w Want) Check(a Answer) string {
	var wrong []string
	if a.Decision != w.Decision {
		text := "got " + a.Decision
		if a.Reason != "" {
			text += " (" + a.Reason + ")"
		}
		wrong = append(wrong, text+", wanted "+w.Decision)
	}
	if w.Rules != nil && !sameSet(a.Rules, w.Rules) {
		wrong = append(wrong, fmt.Sprintf("got rules %v, wanted %v", a.Rules, w.Rules))
	}
	if !strings.Contains(a.Reason, w.Reason) {
		wrong = append(wrong, fmt.Sprintf("got reason %q, wanted one that holds %q", a.Reason, w.Reason))
	}
	return strings.Join(wrong, "; ")
}

func sameSet(a, b []string) bool {
	sorted := func(list []string) []string { return slices.Compact(slices.Sorted(slices.Values(list))) }
	return slices.Equal(sorted(a), sorted(b))
}

// Test decides a case, and says what is not as it expects; empty when all is.
func (w *World) Test(ctx context.Context, c Case) (Answer, string) {
	a := w.Decide(ctx, c.Call)
	return a, c.Want.Check(a)
}

// Cases reads every *_test.yaml and *_test.yml file of a folder. The error is
// strictyaml.Problems where files have mistakes, and lists those of all files.
func Cases(dir fs.FS) ([]Case, error) {
	entries, err := fs.ReadDir(dir, ".")
	if err != nil {
		return nil, fmt.Errorf("reading tests: %w", err)
	}
	var all []Case
	var problems strictyaml.Problems
	for _, entry := range entries {
		base, _ := strings.CutSuffix(strings.TrimSuffix(entry.Name(), ".yml"), ".yaml")
		if entry.IsDir() || base == entry.Name() || !strings.HasSuffix(base, "_test") || strings.HasPrefix(base, ".") {
			continue
		}
		data, err := strictyaml.ReadFile(dir, entry.Name())
		if err != nil {
			return nil, fmt.Errorf("reading tests: %w", err)
		}
		cases, err := Decode(entry.Name(), data)
		var found strictyaml.Problems
		if errors.As(err, &found) {
			problems = append(problems, found...)
		}
		all = append(all, cases...)
	}
	return all, problems.OrNil()
}

// Decode reads the cases of one file. The error is strictyaml.Problems.
func Decode(file string, data []byte) ([]Case, error) {
	var read []*document
	documents, err := strictyaml.Decode(file, data, func() any {
		read = append(read, &document{})
		return read[len(read)-1]
	})
	r := newReader()
	errors.As(err, &r.problems)
	if len(r.problems) > 0 {
		return nil, r.problems // what is missing now may only be misspelt
	}
	for i, at := range documents {
		r.at = at
		r.document(read[i])
	}
	return r.cases, r.problems.OrNil()
}

// reader turns decoded documents into cases.
type reader struct {
	at       *strictyaml.Document
	cases    []Case
	problems strictyaml.Problems
	seen     map[string]int      // names of cases, and their lines
	walked   map[*yaml.Node]bool // by timesAreText
}

func newReader() *reader {
	return &reader{seen: map[string]int{}, walked: map[*yaml.Node]bool{}}
}

func (r *reader) report(path []any, format string, args ...any) {
	r.problems = append(r.problems, r.at.Problem(path, format, args...))
}

func (r *reader) document(d *document) {
	if d.APIVersion != apiVersion {
		r.report([]any{"apiVersion"}, "apiVersion is %q; %q is understood", d.APIVersion, apiVersion)
	}
	if d.Kind != kind {
		r.report([]any{"kind"}, "kind is %q; %q is understood", d.Kind, kind)
	}
	var resources []action.Resource
	for i, s := range d.Resources {
		if s.Group == "" || s.Version == "" || s.Kind == "" || s.Resource == "" || strings.ToLower(s.Resource) != s.Resource {
			r.report([]any{"resources", i}, "a resource has a group, a version, a kind and a resource, which is its plural in lower case")
		}
		resources = append(resources, action.Resource{Group: s.Group, Version: s.Version, Resource: s.Resource, Kind: s.Kind, Namespaced: s.Namespaced})
	}
	if len(d.Cases) == 0 {
		r.report([]any{"cases"}, "there is no case: write at least one under cases")
	}
	for i, s := range d.Cases {
		r.add(s, resources, "cases", i)
	}
}

func (r *reader) add(s caseSpec, resources []action.Resource, at ...any) {
	path := func(more ...any) []any { return append(slices.Clip(at), more...) }
	c := Case{Name: s.Name, File: r.at.File, Line: r.at.Problem(at, "").Line}
	bad := func(where []any, format string, args ...any) {
		r.report(where, "case %s: %s", s.Name, fmt.Sprintf(format, args...))
	}
	if s.Name == "" {
		r.report(at, "case %d has no name", at[1].(int)+1)
	} else if line, dup := r.seen[s.Name]; dup {
		bad(path("name"), "name is used already, at line %d", line)
	}
	r.seen[s.Name] = c.Line

	call := Call{Cluster: s.Cluster, Namespaces: s.Namespaces, Absent: s.Absent, Resources: resources, Now: Noon}
	if p := s.Principal; p == nil || p.Username == "" && p.Subject == "" {
		bad(path("principal"), "principal needs a username")
	} else {
		call.Principal = action.Principal{
			Issuer: p.Issuer, Subject: cmp.Or(p.Subject, p.Username), Username: cmp.Or(p.Username, p.Subject),
			Groups: p.Groups, Client: p.Client, OnBehalfOf: p.OnBehalfOf,
		}
	}
	switch {
	case (s.Call == nil) == (s.Manifest == ""):
		bad(at, "give either call or manifest")
	case s.Call == nil:
		call.Tool = "apply_manifest"
		call.Args, _ = json.Marshal(map[string]string{"manifest": s.Manifest})
	case s.Call.Tool == "":
		bad(path("call"), "call.tool is missing")
	default:
		call.Tool = s.Call.Tool
		args, err := r.object(&s.Call.Args)
		if err != nil {
			bad(path("call", "args"), "args %v", err)
		}
		if call.Args, err = action.Canonical(args); err != nil {
			bad(path("call", "args"), "args %v", err)
		}
	}
	for i := range s.Live {
		object, err := r.object(&s.Live[i])
		if err == nil && object == nil {
			err = errors.New("is not an object")
		}
		if err != nil {
			bad(path("live", i), "object %d of live %v", i+1, err)
		}
		call.Live = append(call.Live, object)
		if meta, _ := object["metadata"].(map[string]any); object["kind"] == "Namespace" {
			name, _ := meta["name"].(string)
			if _, both := s.Namespaces[name]; both || slices.Contains(s.Absent, name) {
				bad(path("live", i), "namespace %s is under live, and under namespaces or absent as well", name)
			}
		}
	}
	for i := range s.Result {
		object, err := r.object(&s.Result[i])
		if err != nil {
			bad(path("result", i), "object %d of result %v", i+1, err)
		}
		call.Results = append(call.Results, object)
	}
	for i, name := range s.Absent {
		if _, both := s.Namespaces[name]; both {
			bad(path("absent", i), "namespace %s is under namespaces and absent", name)
		}
	}
	if s.Now != "" {
		var err error
		if call.Now, err = time.Parse(time.RFC3339, s.Now); err != nil {
			bad(path("now"), "now is %q where a time such as 2026-01-05T12:00:00Z is expected", s.Now)
		}
	}
	c.Call = call

	c.Want = Want{Decision: s.Expect.Decision, Reason: s.Expect.Reason}
	if all := []string{string(policy.Allow), string(policy.RequireApproval), string(policy.Deny), Failed}; !slices.Contains(all, c.Want.Decision) {
		bad(path("expect", "decision"), "expect.decision is %q; one of %s", c.Want.Decision, strings.Join(all, ", "))
	}
	if rules := &s.Expect.Rules; !rules.IsZero() {
		c.Want.Rules = []string{}
		if rules.ShortTag() == "!!null" || rules.Decode(&c.Want.Rules) != nil {
			bad(path("expect", "rules"), "expect.rules is a list of names of rules; [] is none")
		}
	}
	r.cases = append(r.cases, c)
}
