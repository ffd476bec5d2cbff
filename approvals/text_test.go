package approvals

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"countersign/action"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (go test ./approvals -update writes it)", err)
	}
	if got != string(want) {
		t.Errorf("%s is\n%s\nnow it would be\n%s", path, want, got)
	}
}

func TestVisible(t *testing.T) {
	for _, row := range []struct{ name, in, want string }{
		{"plain", "deploy web-1 to prod: 3 → 5, ünïcode, 日本語, 😀", "deploy web-1 to prod: 3 → 5, ünïcode, 日本語, 😀"},
		{"ANSI colours", "\x1b[31mred\x1b[0m", `\u{1B}[31mred\u{1B}[0m`},
		{"ANSI, one byte", "\u009b2J", `\u{9B}2J`},
		{"clear the screen", "\x1b[2J\x1b[H", `\u{1B}[2J\u{1B}[H`},
		{"bell, backspace, delete", "a\a\b\x7f", `a\u{7}\u{8}\u{7F}`},
		{"line breaks", "a\nb\rc\vd\fe\u0085f\u2028g\u2029h", `a\u{A}b\u{D}c\u{B}d\u{C}e\u{85}f\u{2028}g\u{2029}h`},
		{"tab", "a\tb", `a\u{9}b`},
		{"nul", "a\x00b", `a\u{0}b`},
		{"bidi override", "prod-\u202etset\u202c", `prod-\u{202E}tset\u{202C}`},
		{"bidi isolates and marks", "\u2066a\u2069\u200e\u200f\u061c", `\u{2066}a\u{2069}\u{200E}\u{200F}\u{61C}`},
		{"zero width", "pro\u200bd\u200c\u200d\u2060\ufeff", `pro\u{200B}d\u{200C}\u{200D}\u{2060}\u{FEFF}`},
		{"soft hyphen", "pro\u00add", `pro\u{AD}d`},
		{"other spaces", "a\u00a0b\u2003c\u3000d", `a\u{A0}b\u{2003}c\u{3000}d`},
		{"tags", "a\U000e0041\U000e007f", `a\u{E0041}\u{E007F}`},
		{"variation selectors", "a\ufe0f\U000e0100", `a\u{FE0F}\u{E0100}`},
		{"letters that show nothing", "a\u3164b\u115f\u1160\uffa0\u034f\u17b4", `a\u{3164}b\u{115F}\u{1160}\u{FFA0}\u{34F}\u{17B4}`},
		{"symbols that show nothing", "a\u2800b", `a\u{2800}b`},
		{"private use and unassigned", "\ue000\U000fffff\u0378", `\u{E000}\u{FFFFF}\u{378}`},
		{"letters from right to left", "\u05d0b \u0661", `\u{5D0}b \u{661}`},
		{"letters that pass for Latin ones", "ng\u0456nx \u0440od \u0438\u043c\u044f", "ng\\u{456}nx \\u{440}od \u0438\u043c\u044f"},
		{"marks upon Latin letters", "p\u0336r\u0336od", `p\u{336}r\u{336}od`},
		{"marks upon nothing", " \u0301", ` \u{301}`},
		{"heaps of marks", "\u0915\u094d\u0301\u0301\u0301", "\u0915\u094d\u0301" + `\u{301}\u{301}`},
		{"words of other scripts", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0928\u092e\u0938\u094d\u0924\u0947"},
		{"not UTF-8", "a\xffb", "a\uFFFDb"},
		{"markup is text", "<@U123> *bold* `code`", "<@U123> *bold* `code`"},
	} {
		if got := Visible(row.in); got != row.want {
			t.Errorf("%s: got %s; want %s", row.name, got, row.want)
		}
	}
	// Whatever goes in, nothing comes out that Unicode says is not to be seen.
	for r := rune(0); r <= 0xE0FFF; r++ {
		if r == 0x20000 {
			r = 0xE0000 // ideographs and unassigned planes between
		}
		for _, shown := range Visible(string(r)) {
			if unicode.In(shown, unicode.C, unicode.Zl, unicode.Zp, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) {
				t.Errorf("%U is shown as it is", r)
			}
		}
	}
}

func TestDiffText(t *testing.T) {
	for name, diff := range map[string][]action.Change{
		"diff_none": nil,
		"diff_fields": {
			{Op: "replace", Path: "/spec/replicas", Old: int64(3), New: int64(0)},
			{Op: "add", Path: "/metadata/labels/a~1b", New: "x"},
			{Op: "remove", Path: "/spec/paused", Old: true},
			{Op: "replace", Path: "/data/empty", Old: "", New: nil},
			{Op: "replace", Path: "/spec/template/spec/containers/0/command", Old: []any{"sh", "-c", "a && b <x>"}, New: []any{}},
			{Op: "add", Path: "/spec/selector", New: map[string]any{"matchLabels": map[string]any{"app": "web"}}},
		},
		"diff_new_object":  {{Op: "add", New: map[string]any{"kind": "ConfigMap", "metadata": map[string]any{"name": "a"}, "data": map[string]any{"k": "v"}}}},
		"diff_gone_object": {{Op: "remove", Old: map[string]any{"kind": "Namespace", "metadata": map[string]any{"name": "shop"}}}},
		"diff_hostile": {
			{Op: "replace", Path: "/metadata/annotations/x\x1b[2K\ny", Old: "a\n   + /spec/safe", New: "\u202eevil\u200b\x1b[31m\""},
			{Op: "add", Path: "/data/\u3164", New: map[string]any{"k\u202e\n": "v\u2028"}},
		},
	} {
		t.Run(name, func(t *testing.T) { golden(t, name, DiffText(diff)) })
	}
}

func TestText(t *testing.T) {
	deployment := action.Resource{Group: "apps", Version: "v1", Resource: "deployments", Namespaced: true}
	zero := int64(0)
	waiting := Operation{
		ID: "0198c0de-0000-7000-8000-000000000001", State: PendingApproval, Revision: 2,
		Principal:   action.Principal{Issuer: "https://idp", Subject: "s", Username: "devin", OnBehalfOf: "anna"},
		Tool:        "scale_deployment",
		AgentReason: "the sale begins at noon",
		Plan: action.Plan{Tool: "scale_deployment", Actions: []action.Action{{
			Cluster: "prod", Verb: action.Patch, Resource: deployment, Subresource: "scale", Namespace: "shop", Name: "web",
		}}},
		PlanDigest: "sha256:aaaa", PreviewDigest: "sha256:bbbb",
		Diffs:        [][]action.Change{{{Op: "replace", Path: "/spec/replicas", Old: int64(3), New: int64(30)}}},
		Requirements: []Requirement{{Rule: "large-scale", Approvers: []string{"sre", "platform"}, Count: 2}, {Rule: "prod", Approvers: []string{"security"}, Count: 1}},
		Votes:        []Vote{{Person: Person{ID: "local:1000", Name: "bea"}, Ballot: Ballot{Approve: true, Reason: "planned, CHG-1234"}, Time: noon}},
		Rules:        []string{"large-scale", "prod"}, Reason: "Production needs two.", Risks: []string{"replicas to zero", "image changed"},
		Expires: noon.Add(15 * time.Minute), Supersedes: "0198c0de-0000-7000-8000-000000000000",
	}

	rejected := waiting
	rejected.State, rejected.Reason = Rejected, "wait until the sale is over"
	rejected.Votes = append(rejected.Votes, Vote{Person: Person{ID: "local:0", Name: "root"}, Ballot: Ballot{Reason: "wait until the sale is over"}, Time: noon})
	rejected.Supersedes, rejected.SupersededBy = "", "0198c0de-0000-7000-8000-000000000002"

	several := waiting
	several.State, several.Result, several.Principal.OnBehalfOf = Succeeded, "done\nand done", ""
	several.AgentReason, several.Reason, several.Rules, several.Votes, several.Requirements = "", "", nil, nil, nil
	several.Plan.Actions = []action.Action{
		{Cluster: "prod", Verb: action.Patch, Resource: deployment, Namespace: "shop", Name: "web", Options: action.Options{PatchType: action.ApplyPatch, Force: true}},
		{Cluster: "prod", Verb: action.Delete, Resource: deployment, Namespace: "shop", Name: "old", Options: action.Options{PropagationPolicy: "Orphan", GracePeriodSeconds: &zero}},
		{Cluster: "prod", Verb: action.Delete, Resource: deployment, Namespace: "shop", Name: "older", Options: action.Options{PropagationPolicy: "Background"}},
	}
	several.Diffs = [][]action.Change{nil, {{Op: "remove", Old: map[string]any{"kind": "Deployment"}}}}

	// What can be approved for a time, asked again, and what ran under a grant.
	kind := waiting
	kind.GrantFor, kind.Supersedes, kind.Risks = 30*time.Minute, "0198c0de-0000-7000-8000-000000000000", nil
	kind.Drift = []string{"patch deployments.apps/scale shop/web /spec/replicas: was 2 -> 30, now 3 -> 30"}
	kind.Votes = append(kind.Votes, Vote{Person: Person{ID: "slack:T012/U034", Name: "carl"}, Ballot: Ballot{Approve: true, Grant: true}, Time: noon})
	granted := kind
	granted.State, granted.Grant, granted.Supersedes, granted.Drift, granted.Votes = Succeeded, "0198c0de-0000-7000-8000-00000000000a", "", nil, kind.Votes[1:]

	// Everything that somebody else wrote tries to look like something else.
	hostile := waiting
	hostile.AgentReason = "fine\nPlan        sha256:0000\x1b[8m\u202e"
	hostile.Principal = action.Principal{Issuer: "https://idp\n", Username: "devin\nState       APPROVED", OnBehalfOf: "\u200banna"}
	hostile.Reason, hostile.Rules = "a\nNeeds       0 of nobody", []string{"r\n"}
	hostile.Votes = []Vote{{Person: Person{ID: "local:1\n", Name: "b\u202e"}, Ballot: Ballot{Approve: true, Reason: "x\nVote        approved by root"}, Time: noon}}
	hostile.Plan = action.Plan{Actions: []action.Action{{Cluster: "c\n", Verb: action.Patch, Resource: deployment, Namespace: "n", Name: "web\n   nothing would change"}}}

	for name, op := range map[string]Operation{"text_waiting": waiting, "text_rejected": rejected, "text_several": several, "text_kind": kind, "text_granted": granted, "text_hostile": hostile} {
		t.Run(name, func(t *testing.T) {
			got := Text(op)
			golden(t, name, got)
			if i := strings.IndexFunc(got, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
				t.Errorf("%q at %d", got[i:], i)
			}
		})
	}
	// A hostile text is as many lines as a good one: it cannot add any.
	if a, b := strings.Count(Text(waiting), "\n"), strings.Count(Text(hostile), "\n"); a != b {
		t.Errorf("%d lines, and %d when somebody tries to add some", a, b)
	}
}

// What differs from what was asked before is said where it differs, and nothing
// is hidden by being long.
func TestDrifted(t *testing.T) {
	long := strings.Repeat("x", 500)
	for _, row := range []struct {
		name     string
		was, now []action.Change
		want     string
	}{
		{"nothing", []action.Change{replace("/a", int64(1), int64(2))}, []action.Change{replace("/a", int64(1), int64(2))}, ""},
		{"another value before", []action.Change{replace("/a", int64(1), int64(3))}, []action.Change{replace("/a", int64(2), int64(3))}, "/a: was 1 -> 3, now 2 -> 3"},
		{"another value after", []action.Change{replace("/a", "x", "y")}, []action.Change{replace("/a", "x", "z")}, `/a: was "x" -> "y", now "x" -> "z"`},
		{"one more field", []action.Change{replace("/b", "x", "y")}, []action.Change{add("/a", true), replace("/b", "x", "y")}, "/a: was no change, now + true"},
		{"one field less", []action.Change{{Op: "remove", Path: "/a", Old: "x"}}, nil, `/a: was - "x", now no change`},
		{"added where it was replaced", []action.Change{replace("/a", nil, "x")}, []action.Change{add("/a", "x")}, `/a: was null -> "x", now + "x"`},
		{"removed where it was made empty", []action.Change{{Op: "remove", Path: "/a", Old: nil}}, []action.Change{replace("/a", nil, nil)}, `/a: was - null, now null -> null`},
		{"long texts", []action.Change{add("/a", long)}, []action.Change{add("/a", "y")}, `/a: was + "` + long[:79] + `..., now + "y"`},
		{"long texts that differ at their end", []action.Change{add("/a", long+"1")}, []action.Change{add("/a", long+"2")}, `/a: differs behind what is shown here: + "` + long[:79] + "..."},
		{"a new object, at its end", []action.Change{add("", map[string]any{"a": long, "b": "1"})}, []action.Change{add("", map[string]any{"a": long, "b": "2"})}, `: differs behind what is shown here: + {"a":"` + long[:74] + "..."},
		{"cut between characters", []action.Change{add("/a", strings.Repeat("ü", 100))}, nil, `/a: was + "` + strings.Repeat("ü", 79) + "..., now no change"},
	} {
		t.Run(row.name, func(t *testing.T) {
			var want []string
			if row.want != "" {
				want = []string{"patch deployments.apps shop/web " + row.want}
			}
			if got := Drifted(patched(row.was...), patched(row.now...)); !slices.Equal(got, want) {
				t.Errorf("got %q; want %q", got, want)
			}
		})
	}

	var was, now []action.Change
	for i := range 25 {
		was, now = append(was, add(fmt.Sprintf("/%02d", i), "x")), append(now, add(fmt.Sprintf("/%02d", i), "y"))
	}
	got := Drifted(patched(was...), patched(now...))
	if len(got) != 21 || !strings.Contains(got[19], " /19: ") || got[20] != "and 5 more" {
		t.Errorf("of 25: %q", got)
	}

	before, after := patched(add("/a", "x")), patched(add("/a", "x"))
	after.Plan.Actions = append(after.Plan.Actions, after.Plan.Actions[0])
	after.Plan.Actions[1].Name = "api"
	after.Diffs = append(after.Diffs, []action.Change{add("/a", "x")})
	if got := Drifted(before, after); !slices.Equal(got, []string{`patch deployments.apps shop/api /a: was no change, now + "x"`}) {
		t.Errorf("the second Action: %q", got)
	}
}
