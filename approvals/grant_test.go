package approvals

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/action"
)

var deployments = action.Resource{Group: "apps", Version: "v1", Resource: "deployments", Kind: "Deployment", Namespaced: true}

// patched is a request to change a Deployment, with what would change.
func patched(diff ...action.Change) Operation {
	return Operation{
		Plan: action.Plan{Tool: "set_image", Actions: []action.Action{{
			Cluster: "prod", Verb: action.Patch, Resource: deployments, Namespace: "shop", Name: "web",
			Options: action.Options{PatchType: action.MergePatch},
		}}},
		Diffs: [][]action.Change{diff},
	}
}

const image = "/spec/template/spec/containers/0/image"

func replace(path string, old, now any) action.Change {
	return action.Change{Op: "replace", Path: path, Old: old, New: now}
}

func add(path string, now any) action.Change {
	return action.Change{Op: "add", Path: path, New: now}
}

// grantable is pending with a kind that can be approved for half an hour.
func grantable() Operation {
	op := patched(replace(image, "a:1", "a:2"), add("/metadata/labels", map[string]any{"x/y": "1"}))
	asked := pending()
	op.ID, op.State, op.Revision, op.Expires, op.Requirements = asked.ID, asked.State, asked.Revision, asked.Expires, asked.Requirements
	op.Principal = action.Principal{Issuer: "https://idp", Subject: "s-1", Username: "devin", Client: "cli", OnBehalfOf: "anna"}
	op.Tool, op.GrantFor, op.Risks = "set_image", 30*time.Minute, []string{"image changed"}
	return op
}

// What a grant for a change would be about: every value that may differ.
func TestKinds(t *testing.T) {
	fields := func(want ...string) [][]string { return [][]string{want} }
	edit := func(f func(a *action.Action), diff ...action.Change) Operation {
		op := patched(diff...)
		f(&op.Plan.Actions[0])
		return op
	}
	scale := replace("/spec/replicas", int64(2), int64(3))
	for _, row := range []struct {
		name string
		op   Operation
		want [][]string // the fields of each kind
	}{
		{"one field", patched(scale), fields("/spec/replicas")},
		{"sorted, each once", patched(scale, add("/a", "x"), scale), fields("/a", "/spec/replicas")},
		{"what is added whole is all its values", patched(add("/m", map[string]any{"a/b": "1", "c": map[string]any{"d": nil, "e": true}})), fields("/m/a~1b", "/m/c/d", "/m/c/e")},
		{"what is removed whole as well", patched(action.Change{Op: "remove", Path: "/m", Old: map[string]any{"a": "1"}}), fields("-/m/a")},
		{"a value in the place of another is none that goes", patched(replace("/m", "x", nil)), fields("/m")},
		{"and what was and is at one place", patched(replace("/m", map[string]any{"a": "1"}, []any{"x", map[string]any{"k": "v"}})), fields("-/m/a", "/m/0", "/m/1/k")},
		{"items of a list by their place", patched(add("/l", []any{"x", []any{"y"}})), fields("/l/0", "/l/1/0")},
		{"what is empty is a value", patched(add("/m", map[string]any{}), add("/l", []any{}), add("/n", map[string]any{"o": map[string]any{}})), fields("/l", "/m", "/n/o")},
		{"masked values are values", patched(replace("/data/password", "***", "***")), fields("/data/password")},
		{"nothing would change", patched(), fields()},
		{"a scale", edit(func(a *action.Action) { a.Subresource = "scale" }, scale), fields("/spec/replicas")},

		{"a new object", patched(add("", map[string]any{"kind": "Deployment"})), nil},
		{"an object that goes", patched(action.Change{Op: "remove", Old: map[string]any{}}), nil},
		{"a new object beside a field", patched(scale, add("", map[string]any{})), nil},
		{"a deletion", edit(func(a *action.Action) { a.Verb = action.Delete }, scale), nil},
		{"an eviction", edit(func(a *action.Action) { a.Verb, a.Subresource = action.Create, action.Eviction }, scale), nil},
		{"a read", edit(func(a *action.Action) { a.Verb = action.Get }, scale), nil},
		{"by force", edit(func(a *action.Action) { a.Options.Force = true }, scale), nil},
		{"in no namespace", edit(func(a *action.Action) { a.Namespace = "" }, scale), nil},
		{"without a preview", Operation{Plan: patched().Plan}, nil},
		{"nothing at all", Operation{}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			kinds := row.op.Kinds()
			if len(kinds) != len(row.want) {
				t.Fatalf("got %v; want fields %v", kinds, row.want)
			}
			for i, k := range kinds {
				if !slices.Equal(k.Fields, row.want[i]) {
					t.Errorf("fields %v; want %v", k.Fields, row.want[i])
				}
			}
		})
	}

	one := patched(scale)
	want := Kind{Cluster: "prod", Namespace: "shop", Verb: "patch", Resource: deployments, Patch: action.MergePatch, Fields: []string{"/spec/replicas"}}
	if got := one.Kinds(); !reflect.DeepEqual(got, []Kind{want}) {
		t.Errorf("got %+v", got)
	}
	want.Subresource = "scale"
	if got := fmt.Sprint(want); got != "patch deployments.apps/scale, any object of namespace shop in cluster prod: set /spec/replicas" {
		t.Errorf("it is called %s", got)
	}
	// One Action that cannot be granted is none that can.
	one.Plan.Actions = append(one.Plan.Actions, one.Plan.Actions[0])
	one.Diffs = append(one.Diffs, []action.Change{scale})
	if len(one.Kinds()) != 2 {
		t.Errorf("of two: %v", one.Kinds())
	}
	one.Plan.Actions[1].Options.Force = true
	if one.Kinds() != nil {
		t.Errorf("of two: %v", one.Kinds())
	}
}

// Votes are "NAME[SET] kind|one|no"; a grant is there only if all that were
// needed say so.
func TestGranted(t *testing.T) {
	for _, row := range []struct {
		name  string
		votes string
		state State
		by    string // who gave it; empty where nobody did
	}{
		{"all of them", "bea[sre] kind, carl[platform] kind, dora[security] kind", Authorized, "bea carl dora"},
		{"one of two for this one only", "bea[sre] kind, carl[platform] one, dora[security] kind", Authorized, ""},
		{"the last for this one only", "bea[sre] kind, carl[platform] kind, dora[security] one", Authorized, ""},
		{"the last alone for the kind", "bea[sre] one, carl[platform] one, dora[security] kind", Authorized, ""},
		{"nobody", "bea[sre] one, carl[platform] one, dora[security] one", Authorized, ""},
		{"one who was not needed for it", "bea[sre] kind, carl[sre] kind, emil[sre] one, dora[security] kind", Authorized, "bea carl dora"},
		{"not all have voted", "bea[sre] kind, carl[platform] kind", PendingApproval, ""},
		{"somebody says no", "bea[sre] kind, carl[platform] kind, dora[security] no", Rejected, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			op := grantable()
			for vote := range strings.SplitSeq(row.votes, ", ") {
				who, answer, _ := strings.Cut(vote, "] ")
				name, set, _ := strings.Cut(who, "[")
				var err error
				if op, err = op.Vote(person(name, set), Ballot{Approve: answer != "no", Grant: answer == "kind", Reason: "because"}, noon); err != nil {
					t.Fatal(vote, err)
				}
			}
			g, ok := op.Granted("g", noon)
			if op.State != row.state || ok != (row.by != "") {
				t.Fatalf("%s; granted: %v", op.State, ok)
			}
			var by []string
			for _, v := range g.Votes {
				by = append(by, v.Person.Name)
			}
			if got := strings.Join(by, " "); got != row.by {
				t.Errorf("given by %q; want %q", got, row.by)
			}
			if len(op.Votes) != strings.Count(row.votes, ",")+1 {
				t.Errorf("the operation's own votes are %+v", op.Votes)
			}
		})
	}

	op := grantable()
	op.Requirements = op.Requirements[:1]
	op.State, op.Votes = Authorized, []Vote{vote("bea", "sre"), vote("carl", "sre")}
	g, ok := op.Granted("g-1", noon)
	want := Grant{
		ID: "g-1", Revision: 1, Op: "op", Principal: op.Principal, Tool: "set_image", Kinds: op.Kinds(), Risks: []string{"image changed"},
		Votes: op.Votes, Created: noon, Expires: noon.Add(30 * time.Minute),
	}
	if !ok || !reflect.DeepEqual(g, want) || strings.Join(g.By(), ", ") != "bea (local:bea), carl (local:carl)" {
		t.Errorf("got %+v by %v; want %+v", g, g.By(), want)
	}
	for name, change := range map[string]func(*Operation){
		"no time":                func(op *Operation) { op.GrantFor = 0 },
		"nobody was asked":       func(op *Operation) { op.Requirements = nil },
		"pending":                func(op *Operation) { op.State = PendingApproval },
		"executing":              func(op *Operation) { op.State = Executing },
		"a vote that says no":    func(op *Operation) { op.Votes[1].Approve = false },
		"a vote of another's":    func(op *Operation) { op.Votes[1].Person.Sets = []string{"security"} },
		"a vote for one change":  func(op *Operation) { op.Votes[0].Grant = false },
		"a requirement is added": func(op *Operation) { op.Requirements = pending().Requirements },
	} {
		op := op
		op.Votes = slices.Clone(op.Votes)
		change(&op)
		if g, ok := op.Granted("g", noon); ok || g.ID != "" {
			t.Errorf("%s: %+v", name, g)
		}
	}
}

func vote(name string, sets ...string) Vote {
	return Vote{Person: person(name, sets...), Ballot: Ballot{Approve: true, Grant: true}, Time: noon}
}

// A vote for a kind where there is none to be had is refused, and changes nothing.
func TestGrantBallot(t *testing.T) {
	for _, row := range []struct {
		name  string
		limit time.Duration
		b     Ballot
		want  error
	}{
		{"a kind", time.Minute, Ballot{Approve: true, Grant: true}, nil},
		{"this one", time.Minute, Ballot{Approve: true}, nil},
		{"a kind, of what can be approved one by one", 0, Ballot{Approve: true, Grant: true}, ErrNotGrantable},
		{"this one, of what can be approved one by one", 0, Ballot{Approve: true}, nil},
		{"a no for a kind", time.Minute, Ballot{Reason: "no", Grant: true}, ErrNotGrantable},
	} {
		op := grantable()
		op.GrantFor = row.limit
		if after, err := op.Vote(person("bea", "sre"), row.b, noon); fmt.Sprint(err) != fmt.Sprint(row.want) && (row.want == nil || len(after.Votes) != 0 || err.Error() != "only this one can be approved: op") {
			t.Errorf("%s: %v, %+v", row.name, err, after.Votes)
		}
	}
}

// What runs under a grant is what those who gave it could know that they gave:
// every way to get a little more asks again.
func TestCovers(t *testing.T) {
	held := func(diff ...action.Change) (Grant, Operation) {
		op := patched(diff...)
		op.Principal = grantable().Principal
		op.Tool, op.GrantFor, op.Risks = "set_image", 30*time.Minute, []string{"image changed"}
		op.Requirements = []Requirement{{Rule: "r", Approvers: []string{"sre"}, Count: 2}}
		g := Grant{ID: "g", Principal: op.Principal, Tool: op.Tool, Kinds: op.Kinds(), Risks: op.Risks, Votes: []Vote{vote("bea", "sre"), vote("carl", "sre")}, Expires: noon.Add(time.Hour)}
		return g, op
	}
	diffs := func(diff ...action.Change) func(*Grant, *Operation) {
		return func(_ *Grant, op *Operation) { op.Diffs = [][]action.Change{diff} }
	}
	first := func(f func(a *action.Action)) func(*Grant, *Operation) {
		return func(_ *Grant, op *Operation) { f(&op.Plan.Actions[0]) }
	}
	given := []action.Change{replace(image, "a:1", "a:2"), add("/metadata/labels/a", "1"), add("/metadata/annotations", map[string]any{"x": "1"}), add("/spec/list", []any{"x"}), {Op: "remove", Path: "/spec/old", Old: map[string]any{"y": "1"}}}
	for _, row := range []struct {
		name   string
		change func(*Grant, *Operation)
		want   bool
	}{
		{"the same again", func(*Grant, *Operation) {}, true},
		{"another object", first(func(a *action.Action) { a.Name = "api" }), true},
		{"another value", diffs(replace(image, "a:2", "b:3")), true},
		{"fewer fields", diffs(add("/metadata/labels/a", "2")), true},
		{"the field that goes", diffs(action.Change{Op: "remove", Path: "/spec/old/y", Old: "2"}), true},
		{"a part of what was added whole", diffs(replace("/metadata/annotations/x", "1", "2")), true},
		{"an item in the same place", diffs(replace("/spec/list/0", "x", "y")), true},
		{"another session, and other groups", func(_ *Grant, op *Operation) {
			op.Session, op.Principal.Groups, op.Principal.Username = "s", []string{"g"}, "new name"
		}, true},
		{"no risk any more", func(_ *Grant, op *Operation) { op.Risks = nil }, true},
		{"right before the end", func(g *Grant, _ *Operation) { g.Expires = noon.Add(1) }, true},
		{"fewer people are asked for", func(_ *Grant, op *Operation) { op.Requirements[0].Count = 1 }, true},
		{"by another rule, of the same people", func(_ *Grant, op *Operation) {
			op.Requirements = []Requirement{{Rule: "other", Approvers: []string{"platform", "sre"}, Count: 2}}
		}, true},
		{"two objects of the kind", func(_ *Grant, op *Operation) {
			op.Plan.Actions, op.Diffs = append(op.Plan.Actions, op.Plan.Actions[0]), append(op.Diffs, op.Diffs[0])
		}, true},

		{"another subject", func(_ *Grant, op *Operation) { op.Principal.Subject = "s-2" }, false},
		{"another issuer", func(_ *Grant, op *Operation) { op.Principal.Issuer = "https://idp2" }, false},
		{"another client", func(_ *Grant, op *Operation) { op.Principal.Client = "other" }, false},
		{"no client", func(_ *Grant, op *Operation) { op.Principal.Client = "" }, false},
		{"for another person", func(_ *Grant, op *Operation) { op.Principal.OnBehalfOf = "bea" }, false},
		{"for nobody", func(_ *Grant, op *Operation) { op.Principal.OnBehalfOf = "" }, false},
		{"another tool", func(_ *Grant, op *Operation) { op.Tool = "patch_resource" }, false},
		{"another cluster", first(func(a *action.Action) { a.Cluster = "dev" }), false},
		{"another namespace", first(func(a *action.Action) { a.Namespace = "shop2" }), false},
		{"no namespace", first(func(a *action.Action) { a.Namespace = "" }), false},
		{"another resource", first(func(a *action.Action) { a.Resource.Resource = "daemonsets" }), false},
		{"a resource of another group", first(func(a *action.Action) { a.Resource.Group = "apps.example.com" }), false},
		{"a subresource", first(func(a *action.Action) { a.Subresource = "scale" }), false},
		{"another verb", first(func(a *action.Action) { a.Verb, a.Options.PatchType = action.Create, "" }), false},
		{"another type of patch", first(func(a *action.Action) { a.Options.PatchType = action.ApplyPatch }), false},
		{"by force", first(func(a *action.Action) { a.Options.Force = true }), false},
		{"a deletion", first(func(a *action.Action) { a.Verb = action.Delete }), false},
		{"a field that goes, of which a change was granted", diffs(action.Change{Op: "remove", Path: "/metadata/labels/a", Old: "1"}), false},
		{"a change of the field that goes", diffs(replace("/spec/old/y", "1", "2")), false},
		{"one more field", diffs(append(given, add("/spec/paused", true))...), false},
		{"another field alone", diffs(replace("/spec/replicas", int64(1), int64(2))), false},
		{"the image of another container", diffs(replace(strings.Replace(image, "0", "1", 1), "a", "b")), false},
		{"a field above one", diffs(replace("/spec/template/spec/containers/0", "x", "y")), false},
		{"a field below one", diffs(add(image+"/x", "y")), false},
		{"a field of a longer name", diffs(replace(image+"PullPolicy", "a", "b")), false},
		{"another key of what was added whole", diffs(add("/metadata/annotations/y", "1")), false},
		{"one more key in what is added whole", diffs(add("/metadata/annotations", map[string]any{"x": "1", "y": "1"})), false},
		{"it becomes empty whole", diffs(replace("/metadata/annotations", map[string]any{"x": "1"}, map[string]any{})), false},
		{"one more item of a list", diffs(add("/spec/list/1", "y")), false},
		{"an object in the place of a value", diffs(replace("/metadata/labels/a", "1", map[string]any{"b": "2"})), false},
		{"a new object", diffs(add("", map[string]any{"spec": "x"})), false},
		{"no change", diffs(), false},
		{"no preview", func(_ *Grant, op *Operation) { op.Diffs = nil }, false},
		{"nothing at all", func(_ *Grant, op *Operation) { op.Plan.Actions, op.Diffs = nil, nil }, false},
		{"one more, of another kind", func(_ *Grant, op *Operation) {
			a := op.Plan.Actions[0]
			a.Namespace = "other"
			op.Plan.Actions, op.Diffs = append(op.Plan.Actions, a), append(op.Diffs, op.Diffs[0])
		}, false},
		{"one more, without a preview", func(_ *Grant, op *Operation) {
			op.Plan.Actions = append(op.Plan.Actions, op.Plan.Actions[0])
		}, false},
		{"another risk", func(_ *Grant, op *Operation) { op.Risks = []string{"replicas to zero"} }, false},
		{"one more risk", func(_ *Grant, op *Operation) { op.Risks = append(slices.Clone(op.Risks), "replicas to zero") }, false},
		{"revoked", func(g *Grant, _ *Operation) { g.Revoked = "root (local:0)" }, false},
		{"at its end", func(g *Grant, _ *Operation) { g.Expires = noon }, false},
		{"after its end", func(g *Grant, _ *Operation) { g.Expires = noon.Add(-time.Second) }, false},
		{"what can be approved one by one only", func(_ *Grant, op *Operation) { op.GrantFor = 0 }, false},
		{"policy asks for one more", func(_ *Grant, op *Operation) { op.Requirements[0].Count = 3 }, false},
		{"policy asks for others", func(_ *Grant, op *Operation) { op.Requirements[0].Approvers = []string{"security"} }, false},
		{"policy asks for others too", func(_ *Grant, op *Operation) {
			op.Requirements = append(op.Requirements, Requirement{Rule: "two", Approvers: []string{"security"}, Count: 1})
		}, false},
		{"policy asks nobody", func(_ *Grant, op *Operation) { op.Requirements = nil }, false},
		{"nobody gave it", func(g *Grant, _ *Operation) { g.Votes = nil }, false},
		{"its own votes do not help", func(g *Grant, op *Operation) { g.Votes, op.Votes = nil, g.Votes }, false},
		{"no kinds", func(g *Grant, _ *Operation) { g.Kinds = nil }, false},
		{"a kind without fields", func(g *Grant, _ *Operation) { g.Kinds[0].Fields = nil }, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			g, op := held(given...)
			row.change(&g, &op)
			if got := g.Covers(op, noon); got != row.want {
				t.Errorf("covers: %v", got)
			}
		})
	}
	t.Run("two kinds, each of its own fields", func(t *testing.T) {
		g, op := held(replace(image, "a", "b"))
		other := g.Kinds[0]
		other.Namespace, other.Fields = "other", []string{"/spec/replicas"}
		g.Kinds = append(g.Kinds, other)
		op.Plan.Actions[0].Namespace = "other"
		if g.Covers(op, noon) {
			t.Error("the fields of one kind are taken for those of another")
		}
		op.Diffs[0] = []action.Change{replace("/spec/replicas", int64(1), int64(2))}
		if !g.Covers(op, noon) {
			t.Error("the second kind is not covered")
		}
	})
}
