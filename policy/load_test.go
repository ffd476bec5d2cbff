package policy

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"countersign/action"
	"countersign/strictyaml"
)

const header = "apiVersion: countersign/v1alpha1\nkind: Policy\nmetadata: {name: p}\nspec:\n  rules:\n"

const idWanted = `the id of the channel is wanted, such as C0123ABCD, and not its name: in Slack, click the channel's name; the id stands at the end of the tab About`

// mistakeRow is a file, with "<1>", "<2>", ... at the end of the lines that have
// a mistake, and what is said of each.
type mistakeRow struct {
	name, file string
	want       []string
}

func (row mistakeRow) run(t *testing.T, known Known) {
	t.Helper()
	t.Run(row.name, func(t *testing.T) {
		text, lines := marked(row.file, len(row.want))
		_, err := Load(fstest.MapFS{"p.yaml": {Data: []byte(text)}}, known)
		var got, want []string
		var problems strictyaml.Problems
		if !errors.As(err, &problems) {
			t.Fatalf("got %v; want Problems", err)
		}
		for _, p := range problems {
			got = append(got, p.Error())
		}
		for i, text := range row.want {
			want = append(want, strictyaml.Problem{File: "p.yaml", Line: lines[i], Text: text}.Error())
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

func TestLoadReportsEveryMistakeWithItsLine(t *testing.T) {
	for _, row := range []mistakeRow{
		{"unknown key of a rule", header + `
  - name: r
    effect: allow
    mach: {verbs: [get]} <1>`, []string{`unknown key "mach"`}},
		{"unknown key at the top", "specs: {} <1>\n" + header + `  - {name: r, effect: allow}`, []string{`unknown key "specs"`}},
		{"unknown key under metadata", strings.Replace(header, "metadata: {name: p}", "metadata: {name: p, label: x} <1>", 1) + `  - {name: r, effect: allow}`,
			[]string{`unknown key "label"`}},
		{"unknown key under spec", "apiVersion: countersign/v1alpha1\nkind: Policy\nmetadata: {name: p}\nspec:\n  modus: shadow <1>\n  rules: [{name: r, effect: allow}]",
			[]string{`unknown key "modus"`}},
		{"unknown key under match", header + `
  - name: r
    effect: allow
    match:
      namespace: [shop] <1>`, []string{`unknown key "namespace"`}},
		{"unknown key under principals", header + `
  - name: r
    effect: allow
    match: {principals: {users: [bot]}} <1>`, []string{`unknown key "users"`}},
		{"unknown key with white space", header + `
  - name: r
    effect: allow
    "na mes": [shop] <1>`, []string{`unknown key "na mes"`}},
		{"key in another case", header + `
  - name: r
    Effect: allow <1>
    effect: allow`, []string{`unknown key "Effect"`}},
		{"key given twice", header + `
  - name: r
    effect: allow
    effect: deny <1>`, []string{`mapping key "effect" already defined at line 8`}},
		{"text where a list is expected", header + `
  - name: r
    effect: allow
    match: {verbs: get} <1>`, []string{`"get" where a list is expected`}},
		{"text where a mapping is expected", header + `
  - name: r
    effect: allow
    match: get <1>`, []string{`"get" where a mapping is expected`}},
		{"text where principals are expected", header + `
  - name: r
    effect: allow
    match: {principals: agents} <1>`, []string{`"agents" where a mapping is expected`}},
		{"list where text is expected", header + `
  - name: r
    effect: [allow] <1>`, []string{`a list where text is expected`, `rule r: effect is missing: allow, require_approval or deny`}},
		{"list where a name is expected", header + `
  - name: [r] <1>
    effect: allow`, []string{`a list where text is expected`, `rule 1 has no name`}},
		{"unknown effect", header + `
  - name: r
    effect: permit <1>`, []string{`rule r: effect is "permit"; allow, require_approval or deny`}},
		{"no effect", header + `
  - name: r <1>`, []string{`rule r: effect is missing: allow, require_approval or deny`}},
		{"no name", header + `
  - effect: allow <1>`, []string{`rule 1 has no name`}},
		{"unknown verb", header + `
  - name: r
    effect: allow
    match:
      resources: [pods]
      verbs: [get, destroy] <1>`, []string{`rule r: unknown verb "destroy"; one of get, list, watch, create, update, patch, delete, deletecollection`}},
		{"unknown verb, excluded", header + `
  - name: r
    effect: allow
    match: {verbs: ["*", "!remove"]} <1>`, []string{`rule r: unknown verb "remove"; one of get, list, watch, create, update, patch, delete, deletecollection`}},
		{"glob for a verb", header + `
  - name: r
    effect: allow
    match: {verbs: ["delete*"]} <1>`, []string{`rule r: unknown verb "delete*"; one of get, list, watch, create, update, patch, delete, deletecollection`}},
		{"condition does not parse", header + `
  - name: r
    effect: allow
    when: object.spec. <1>`, []string{`rule r: when: at character 13: Syntax error: no viable alternative at input '.'`}},
		{"condition names what is not there", header + `
  - name: r
    effect: allow
    when: objekt.spec.replicas > 1 && user == "x" <1>`, []string{`rule r: when: at character 1: undeclared reference to 'objekt' (in container ''); at character 29: undeclared reference to 'user' (in container '')`}},
		{"condition gives a number", header + `
  - name: r
    effect: allow
    when: 1 + 1 <1>`, []string{`rule r: when: gives int; it must give true or false`}},
		{"condition gives text", header + `
  - name: r
    effect: allow
    when: tool <1>`, []string{`rule r: when: gives string; it must give true or false`}},
		{"no approval", header + `
  - name: r <1>
    effect: require_approval`, []string{`rule r: require_approval needs approval.approvers`}},
		{"nobody to approve", header + `
  - name: r
    effect: require_approval
    approval: {count: 1} <1>`, []string{`rule r: require_approval needs approval.approvers`}},
		{"approval of what is allowed", header + `
  - name: r
    effect: allow
    approval: {approvers: [sre]} <1>`, []string{`rule r: approval is for effect require_approval only`}},
		{"unknown approver set", header + `
  - name: r
    effect: require_approval
    approval:
      approvers: [sre, srE] <1>`, []string{`rule r: approver set "srE" is not defined under approvers in the configuration`}},
		{"approval out of range", header + `
  - name: r
    effect: require_approval
    approval:
      approvers: [sre]
      count: 0 <1>
      expires: -1m <2>
      reason: always <3>`, []string{`rule r: approval.count must be at least 1`, `rule r: approval.expires must be more than 0`, `rule r: approval.reason is "always"; required or optional`}},
		{"grant of another kind", header + `
  - name: r
    effect: require_approval
    approval:
      approvers: [sre]
      grant: Never <1>
  - name: s
    effect: require_approval
    approval: {approvers: [sre], grant: false} <2>
  - name: t
    effect: require_approval
    approval:
      approvers: [sre]
      grant: <3>
      channel: "" <4>
  - {name: u, effect: deny, approval: {grant: never}} <5>`, []string{`rule r: approval.grant is "Never"; never or allowed`,
			`rule s: approval.grant is "false"; never or allowed`,
			`key "grant" is empty: fill it in or leave it out`, `key "channel" is empty: fill it in or leave it out`,
			`rule u: approval is for effect require_approval only`}},
		{"name of a channel", header + `
  - name: r
    effect: require_approval
    approval:
      approvers: [sre]
      channel: "#ops" <1>
  - name: s
    effect: require_approval
    approval:
      approvers: [sre]
      channel: c0123abcd <2>
  - name: t
    effect: require_approval
    approval:
      approvers: [sre]
      channel: D0123ABCD <3>
  - name: u
    effect: require_approval
    approval:
      approvers: [sre]
      channel: [C0123ABCD] <4>
  - name: v
    effect: require_approval
    approval: {approvers: [sre], channel: "C0123ABCD\n"} <5>`, []string{
			`rule r: approval.channel is "#ops"; ` + idWanted, `rule s: approval.channel is "c0123abcd"; ` + idWanted,
			`rule t: approval.channel is "D0123ABCD"; ` + idWanted, `a list where text is expected`,
			`rule v: approval.channel is "C0123ABCD\n"; ` + idWanted}},
		{"approval of the wrong type", header + `
  - name: r
    effect: require_approval
    approval:
      approvers: [sre]
      count: two <1>
      expires: soon <2>`, []string{`"two" where a whole number is expected`, `"soon" where a duration such as "45s" is expected`, `rule r: approval.count must be at least 1`}},
		{"a fraction of a person", header + `
  - name: r
    effect: require_approval
    approval:
      approvers: [sre]
      count: 1.9 <1>`, []string{`"1.9" where a whole number is expected`, `rule r: approval.count must be at least 1`}},
		{"match begun and not finished", header + `
  - name: r
    effect: allow
    match: <1>`, []string{`key "match" is empty: fill it in or leave it out`}},
		{"field of match begun and not finished", header + `
  - name: r
    effect: allow
    match:
      namespaces: [] <1>
      verbs: <2>
      principals: {groups: [a]}`, []string{`key "namespaces" is empty: fill it in or leave it out`, `key "verbs" is empty: fill it in or leave it out`}},
		{"condition begun and not finished", header + `
  - name: r
    effect: allow
    when: "" <1>`, []string{`key "when" is empty: fill it in or leave it out`}},
		{"name used twice", header + `
  - {name: r, effect: allow}
  - {name: s, effect: allow}
  - {name: r, effect: deny} <1>`, []string{`rule r: name is used already, at p.yaml:7`}},
		{"name used twice, in another document", header + `
  - {name: r, effect: allow}
---
apiVersion: countersign/v1alpha1
kind: Policy
metadata: {name: q}
spec:
  rules: [{name: r, effect: deny}] <1>`, []string{`rule r: name is used already, at p.yaml:7`}},
		{"name that cannot be seen", header + `
  - {name: "a\e[31mb", effect: allow} <1>
  - {name: "a\u202eb", effect: allow} <2>
  - {name: "a\nb", effect: allow} <3>
  - {name: "a\u3164", effect: allow} <4>
  - {name: "a\u2800", effect: allow} <5>
  - {name: été 1, effect: allow}
  limits:
  - {name: "\u200b", calls: 1, per: 1m} <6>`, []string{
			`rule 1: name "a\x1b[31mb" holds a character that cannot be seen`, `rule 2: name "a\u202eb" holds a character that cannot be seen`,
			`rule 3: name "a\nb" holds a character that cannot be seen`, `rule 4: name "a\u3164" holds a character that cannot be seen`,
			`rule 5: name "a\u2800" holds a character that cannot be seen`, `limit 1: name "\u200b" holds a character that cannot be seen`}},
		{"name too long", header + `
  - {name: ` + strings.Repeat("é", 100) + `, effect: allow}
  - {name: ` + strings.Repeat("a", 101) + `, effect: allow} <1>`, []string{`rule 2: name is longer than 100 characters`}},
		{"another kind", "apiVersion: v1 <1>\nkind: ConfigMap <2>\nmetadata: {name: p}\nspec: {rules: [{name: r, effect: allow}]}",
			[]string{`apiVersion is "v1"; "countersign/v1alpha1" is understood`, `kind is "ConfigMap"; "Policy" is understood`}},
		{"no metadata", "apiVersion: countersign/v1alpha1 <1>\nkind: Policy\nspec: {rules: [{name: r, effect: allow}]}", []string{`metadata.name is missing`}},
		{"not a mapping", "- just <1>\n- a list\n", []string{`a list where a mapping is expected`, `apiVersion is ""; "countersign/v1alpha1" is understood`,
			`kind is ""; "Policy" is understood`, `metadata.name is missing`}},
		{"does not parse", header + "  - name: r\n    effect: \"allow <1>\n", []string{`found unexpected end of stream`}},
		{"not text", "\xff\xfe\x00", []string{`incomplete UTF-16 character`}},
		{"several mistakes, all at once", header + `
  - name: a
    effect: maybe <1>
  - name: b
    effect: allow
    match: {verbs: [smash]} <2>
    when: 1 <3>
  - name: c
    effect: require_approval
    approval: {approvers: [nobody]} <4>
    extra: 1 <5>
  - name: a <6>
    effect: deny`, []string{
			`rule a: effect is "maybe"; allow, require_approval or deny`,
			`rule b: unknown verb "smash"; one of get, list, watch, create, update, patch, delete, deletecollection`,
			`rule b: when: gives int; it must give true or false`,
			`rule c: approver set "nobody" is not defined under approvers in the configuration`,
			`unknown key "extra"`,
			`rule a: name is used already, at p.yaml:7`,
		}},
	} {
		row.run(t, Known{Approvers: approverSets})
	}
}

// marked takes the marks out of a file and says on which lines they stood. A
// mistake without a mark of its own stands where the first does; in a file
// without marks there is no line to name.
func marked(file string, n int) (string, []int) {
	lines := make([]int, n)
	for i := range lines {
		mark := fmt.Sprintf(" <%d>", i+1)
		before, after, found := strings.Cut(file, mark)
		switch {
		case found:
			lines[i], file = strings.Count(before, "\n")+1, before+after
		case i > 0:
			lines[i] = lines[0]
		}
	}
	return file, lines
}

func TestLoadSeveralFiles(t *testing.T) {
	rule := func(name string) *fstest.MapFile {
		return &fstest.MapFile{Data: []byte(header + "  - {name: " + name + ", effect: allow, match: {names: [" + name + "]}}\n")}
	}
	t.Run("all count, tests and other files do not", func(t *testing.T) {
		set, err := load(fstest.MapFS{
			"a.yaml": rule("a"), "b.yml": rule("b"), "two.yaml": {Data: append(append(rule("c").Data, "---\n"...), rule("d").Data...)},
			"a_test.yaml": {Data: []byte("cases: []")}, "a_test.yml": {Data: []byte("cases: []")}, "README.md": {Data: []byte("# x")},
			".hidden.yaml": {Data: []byte("x")}, "old.yaml.bak": {Data: []byte("x")}, "sub/e.yaml": rule("e"),
		})
		if err != nil {
			t.Fatal(err)
		}
		w := given(t, "  - {name: x, effect: allow}")
		w.set = set
		w.allow("get pods shop/a", "get pods shop/b", "get pods shop/c", "get pods shop/d")
		w.deny("get pods shop/e")
	})
	t.Run("a name is used once in all of them", func(t *testing.T) {
		_, err := load(fstest.MapFS{"a.yaml": rule("same"), "b.yaml": rule("same")})
		if want := "b.yaml:6: rule same: name is used already, at a.yaml:6"; err == nil || err.Error() != want {
			t.Errorf("got %v; want %s", err, want)
		}
	})
	t.Run("mistakes of all of them", func(t *testing.T) {
		_, err := load(fstest.MapFS{"a.yaml": {Data: []byte("x: 1")}, "b.yaml": {Data: nil}, "c.yaml": {Data: []byte("{")}, "d.yaml": rule("good")})
		if err == nil {
			t.Fatal("loaded")
		}
		for _, want := range []string{`a.yaml:1: unknown key "x"`, "b.yaml: is empty", "c.yaml:1: "} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v\nlacks %s", err, want)
			}
		}
	})
}

// The folder is read every second: what is no file, or too large to be one that
// somebody wrote, is refused before it is read.
func TestLoadOddFiles(t *testing.T) {
	for name, row := range map[string]struct {
		file *fstest.MapFile
		want string
	}{
		"a pipe":             {&fstest.MapFile{Mode: fs.ModeNamedPipe}, "p.yaml is not a file"},
		"a link to a folder": {&fstest.MapFile{Mode: fs.ModeSymlink, Data: []byte("folder")}, "p.yaml is not a file"},
		"a link to nothing":  {&fstest.MapFile{Mode: fs.ModeSymlink, Data: []byte("nowhere")}, "reading policy: "},
		"too large":          {&fstest.MapFile{Data: make([]byte, strictyaml.MaxBytes+1)}, "p.yaml is larger than 1048576 bytes"},
	} {
		_, err := load(fstest.MapFS{"p.yaml": row.file, "folder": {Mode: fs.ModeDir | 0o700}})
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v; want %q", name, err, row.want)
		}
	}
}

func TestLoadNothing(t *testing.T) {
	for name, files := range map[string]fstest.MapFS{
		"empty directory": {},
		"only others":     {"README.md": {Data: []byte("x")}, "p_test.yaml": {Data: []byte("x")}},
		"no rules":        {"p.yaml": {Data: []byte("apiVersion: countersign/v1alpha1\nkind: Policy\nmetadata: {name: p}\n")}},
	} {
		if set, err := load(files); err == nil || set != nil || !strings.HasPrefix(err.Error(), "holds no policy rule") {
			t.Errorf("%s: %v, %v", name, set, err)
		}
	}
	if set, err := Load(fstest.MapFS{"p": {Data: []byte("a file")}}, Known{}); err == nil || set != nil {
		t.Errorf("no YAML: %v, %v", set, err)
	}
	absent, err := fstest.MapFS{}.Sub("absent")
	if err != nil {
		t.Fatal(err)
	}
	if set, err := Load(absent, Known{}); err == nil || set != nil || !strings.HasPrefix(err.Error(), "reading policy directory: ") {
		t.Errorf("absent directory: %v, %v", set, err)
	}
}

// Every record carries the digest, so that it can be said which policy was in
// force: no two policies share one.
func TestSetDigest(t *testing.T) {
	const text = header + "  - {name: r, effect: allow} # note\n"
	digest := func(files fstest.MapFS) string {
		set, err := load(files)
		if err != nil {
			t.Fatal(err)
		}
		return set.Digest()
	}
	base := digest(fstest.MapFS{"p.yaml": {Data: []byte(text)}})
	if !strings.HasPrefix(base, "sha256:") || len(base) != len("sha256:")+64 {
		t.Fatalf("digest %q", base)
	}
	if again := digest(fstest.MapFS{"p.yaml": {Data: []byte(text)}, "p_test.yaml": {Data: []byte("x")}}); again != base {
		t.Error("the same policy has two digests")
	}
	other := strings.Replace(text, "name: r,", "name: s,", 1)
	seen := map[string]string{base: "itself"}
	for name, files := range map[string]fstest.MapFS{
		"a comment":        {"p.yaml": {Data: []byte(strings.Replace(text, "note", "noTe", 1))}},
		"white space":      {"p.yaml": {Data: []byte(text + "\n")}},
		"a file's name":    {"q.yaml": {Data: []byte(text)}},
		"another rule":     {"p.yaml": {Data: []byte(other)}},
		"two files":        {"p.yaml": {Data: []byte(text)}, "q.yaml": {Data: []byte(other)}},
		"two files, moved": {"p.yaml": {Data: []byte(other)}, "q.yaml": {Data: []byte(text)}},
		"one file of both": {"p.yaml": {Data: []byte(text + "---\n" + other)}},
	} {
		d := digest(files)
		if same, dup := seen[d]; dup {
			t.Errorf("%s: same digest as %s", name, same)
		}
		seen[d] = name
	}
}

// A policy file is read or refused; it never takes the server down, and what
// it says of a request can always be asked.
func FuzzLoad(f *testing.F) {
	for _, seed := range []string{
		header + "  - {name: r, effect: allow, match: {verbs: [get], namespaces: ['a*b*']}, when: 'size(diff) > 0 && object.x == 1'}\n",
		header + "  - {name: r, effect: require_approval, approval: {approvers: [sre], count: 2, expires: 1h, reason: required, grant: never, channel: C0123ABCD}}\n",
		header + "  - {name: r, effect: deny, when: '[1,2].all(x, x > 0) && now > timestamp(\"2026-01-01T00:00:00Z\")'}\n---\n" + header,
		"a: &a [*a]\n", "a: &a [x,x]\nb: [*a,*a]\nspec: {rules: *a}\n", "{", "---\n---\n", "!!binary x: y\n", "? {a: b}\n: c\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		files := fstest.MapFS{"p.yaml": {Data: data}}
		set, err := load(files)
		if (set == nil) == (err == nil) {
			t.Fatalf("%v, %v", set, err)
		}
		var problems strictyaml.Problems
		if errors.As(err, &problems) {
			for _, p := range problems {
				if p.File != "p.yaml" || p.Line < 0 || p.Line > len(data)+1 || p.Text == "" {
					t.Errorf("problem %+v", p)
				}
			}
		}
		if err != nil {
			return
		}
		preview := action.NewPreview(nil, map[string]any{"spec": map[string]any{}})
		d := set.Decide(Request{Principal: &action.Principal{}, Tool: "t", Action: &action.Action{Verb: action.Patch}, Preview: &preview, NamespaceRead: true, Now: noon})
		if d.Needs != 0 || !slices.Contains([]Effect{Allow, RequireApproval, Deny}, d.Effect) {
			t.Errorf("decision %+v", d)
		}
	})
}

// BenchmarkDecide500 decides against 500 rules and the built-in guards. What it
// costs hangs on how many conditions are evaluated, so on how many rules are
// about the request at hand, and not on how many rules have one.
func BenchmarkDecide500(b *testing.B) {
	result := map[string]any{"metadata": map[string]any{"labels": map[string]any{"team": "bot"}}, "spec": map[string]any{"replicas": int64(3)}}
	preview := action.NewPreview(nil, result)
	req := Request{
		Principal: &action.Principal{Issuer: "https://idp", Subject: "bot-1", Username: "bot", Groups: []string{"agents", "team-shop"}},
		Tool:      "scale_deployment", Args: map[string]any{"replicas": int64(3)}, Preview: &preview, Now: noon,
		Action: &action.Action{
			Cluster: "local", Verb: action.Patch, Subresource: "scale", Namespace: "shop", Name: "web",
			Body:     map[string]any{"spec": map[string]any{"replicas": int64(3)}},
			Resource: action.Resource{Group: "apps", Version: "v1", Resource: "deployments", Kind: "Deployment", Namespaced: true},
		},
	}
	for _, row := range []struct{ conditions, evaluated int }{{250, 5}, {250, 50}, {500, 10}} {
		b.Run(fmt.Sprintf("conditions=%d/evaluated=%d", row.conditions, row.evaluated), func(b *testing.B) {
			set, err := load(fstest.MapFS{"p.yaml": {Data: []byte(manyRules(500, row.conditions, row.evaluated))}})
			if err != nil {
				b.Fatal(err)
			}
			if d := set.Decide(req); d.Effect != Allow || len(d.Rules) != row.evaluated {
				b.Fatalf("decision %+v", d)
			}
			b.ReportAllocs()
			for b.Loop() {
				set.Decide(req)
			}
		})
	}
}

// manyRules writes n rules, so many of them with a condition; some of those are
// about namespace shop, and the rest about others.
func manyRules(n, conditions, about int) string {
	var rules strings.Builder
	rules.WriteString(header)
	for i := range n {
		effect, namespaces := "deny", fmt.Sprintf(`["team-%d-*", "!kube-*"]`, i%40)
		every := n / conditions
		if i%every == 0 && i/every < about {
			effect, namespaces = "allow", `["sh*", "!kube-*"]`
		}
		fmt.Fprintf(&rules, "  - name: rule-%d\n    effect: %s\n    match: {principals: {groups: [agents, 'team-*']}, namespaces: %s, resources: [deployments.apps, pods]}\n", i, effect, namespaces)
		if i%every == 0 {
			fmt.Fprintf(&rules, "    when: object.spec.replicas <= %d && object.metadata.labels.team == principal.username && args.replicas > 0\n", 10+i)
		}
	}
	return rules.String()
}
