package gate

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"countersign/action"
	"countersign/approvals"
	"countersign/audit"
)

// grant makes a call that is asked about, and bea consents to its kind.
func (r *rig) grant(replicas int) approvals.Grant {
	r.t.Helper()
	op := r.scale(replicas).Op
	if _, err := r.Vote(op, sre("bea"), approvals.Ballot{Approve: true, Grant: true}); err != nil {
		r.t.Fatal(err)
	}
	r.reaches(op, approvals.Succeeded)
	return r.onlyGrant()
}

func (r *rig) onlyGrant() approvals.Grant {
	r.t.Helper()
	grants, err := r.Grants()
	if err != nil || len(grants) != 1 {
		r.t.Fatalf("grants %+v, %v", grants, err)
	}
	return grants[0]
}

// of are the records of one type.
func (m *memory) of(recordType string) []audit.Record {
	return slices.DeleteFunc(m.all(), func(r audit.Record) bool { return r.Type != recordType })
}

// Consent to a kind is stored with the vote, and what runs under it names it.
func TestGrant(t *testing.T) {
	r := newRig(t, askAlways)
	var together []string
	r.store.fault = func(b Batch) fault {
		if len(b.Grants) > 0 {
			together = append(together, types(records(b)))
		}
		return none
	}
	id := r.scale(3).Op
	if op, err := r.store.Operation(id); err != nil || op.GrantFor != 30*time.Minute {
		t.Fatalf("the approver is offered %s, %v", op.GrantFor, err)
	}
	if _, err := r.Vote(id, sre("bea"), approvals.Ballot{Approve: true, Grant: true, Reason: "all day"}); err != nil {
		t.Fatal(err)
	}
	r.reaches(id, approvals.Succeeded)
	g := r.onlyGrant()
	if g.Op != id || g.Principal.Key() != bot.Key() || g.Tool != "scale_deployment" || g.Uses != 0 || g.Revision != 1 ||
		!g.Created.Equal(noon) || !g.Expires.Equal(noon.Add(30*time.Minute)) ||
		len(g.Kinds) != 1 || g.Kinds[0].Namespace != "shop" || !slices.Equal(g.Kinds[0].Fields, []string{"/spec/replicas"}) {
		t.Errorf("got %+v", g)
	}
	created := r.store.of(audit.GrantCreated)
	if len(created) != 1 || created[0].Op != id || created[0].Outcome != audit.Success || created[0].Principal.Key() != bot.Key() ||
		created[0].Approval.Grant != g.ID || !slices.Equal(created[0].Approval.By, []string{"bea (local:bea)"}) || created[0].Payload == nil || !created[0].Approval.Expires.Equal(g.Expires) || created[0].Actions[0].Namespace != "shop" || !slices.Equal(created[0].Approval.Fields, []string{"/spec/replicas"}) {
		t.Errorf("on record is %+v", created)
	}

	before := len(r.store.all())
	r.later(10 * time.Minute)
	got := r.scale(5)
	if got.Status != Succeeded || got.Summary != "deployments.apps shop/web scaled to 5 replicas" {
		t.Fatalf("the next of the kind: %+v", got)
	}
	used := r.store.all()[before:]
	if names := types(used); names != "tool.intent policy.decided exec.started exec.outcome" {
		t.Errorf("records %s", names)
	}
	for _, record := range used[1:3] {
		if a := record.Approval; a == nil || a.Grant != g.ID || !slices.Equal(a.By, []string{"bea (local:bea)"}) || a.PlanDigest == "" || a.PreviewDigest == "" {
			t.Errorf("%s names %+v", record.Type, a)
		}
	}
	if d := used[1]; d.Outcome != audit.Success || d.Policy.Decision != "require_approval" || !slices.Equal(d.Policy.Rules, []string{"ask"}) {
		t.Errorf("the decision is %+v, %+v", d, d.Policy)
	}
	op, err := r.store.Operation(got.Op)
	if err != nil || op.Grant != g.ID || op.Asked() || op.GrantFor != 0 || !op.Expires.IsZero() || len(op.Votes) != 1 {
		t.Errorf("stored is %+v, %v", op, err)
	}
	if now := r.onlyGrant(); now.Uses != 1 || now.Revision != 2 || !now.Expires.Equal(g.Expires) || len(r.store.of(audit.GrantCreated)) != 1 {
		t.Errorf("the grant is now %+v", now)
	}
	r.wantSent(scaled, scaled)
	if want := []string{"approval.voted approval.decided grant.created", "tool.intent policy.decided exec.started"}; !slices.Equal(together[:1], want[:1]) || !strings.HasSuffix(want[1], together[1]) {
		t.Errorf("committed with the grant: %q; want %q", together, want)
	}
	// A restart keeps it.
	r.restart()
	if got := r.scale(6); got.Status != Succeeded || r.onlyGrant().Uses != 2 {
		t.Errorf("after a restart: %+v, %+v", got, r.onlyGrant())
	}
}

// records are those of a batch.
func records(b Batch) []audit.Record {
	var out []audit.Record
	for _, e := range b.Entries {
		out = append(out, e.Record)
	}
	return out
}

// A vote for this one alone is no grant, and one that cannot be stored is none.
func TestNoGrant(t *testing.T) {
	t.Run("this one", func(t *testing.T) {
		r := newRig(t, askAlways)
		id := r.scale(3).Op
		r.approve(id)
		r.reaches(id, approvals.Succeeded)
		if got := r.scale(5); got.Status != Pending || len(r.store.grants) != 0 {
			t.Errorf("got %+v, %+v", got, r.store.grants)
		}
	})
	t.Run("two are needed, and one says this one", func(t *testing.T) {
		r := newRig(t, strings.Replace(askAlways, "approvers: [sre]", "approvers: [sre], count: 2", 1))
		id := r.scale(3).Op
		for name, kind := range map[string]bool{"bea": true, "carl": false} {
			if _, err := r.Vote(id, sre(name), approvals.Ballot{Approve: true, Grant: kind}); err != nil {
				t.Fatal(err)
			}
		}
		r.reaches(id, approvals.Succeeded)
		if got := r.scale(5); got.Status != Pending || len(r.store.grants) != 0 {
			t.Errorf("got %+v, %+v", got, r.store.grants)
		}
	})
	t.Run("the log is broken", func(t *testing.T) {
		r := newRig(t, askAlways)
		id := r.scale(3).Op
		r.store.fault = func(Batch) fault { return lost }
		if _, err := r.Vote(id, sre("bea"), approvals.Ballot{Approve: true, Grant: true}); !errors.Is(err, errDisk) || len(r.store.grants) != 0 {
			t.Errorf("%v, %+v", err, r.store.grants)
		}
		r.wantSent()
	})
	t.Run("the use cannot be recorded", func(t *testing.T) {
		r := newRig(t, askAlways)
		r.grant(3)
		r.store.fault = func(b Batch) fault {
			if holds(b, audit.ExecStarted) {
				return lost
			}
			return none
		}
		if got := r.scale(5); got.Status != Failed {
			t.Errorf("got %+v", got)
		}
		r.wantSent(scaled)
	})
}

// What a grant is not for is asked, or denied, as if there were none.
func TestBeyondAGrant(t *testing.T) {
	call := func(tool, args string) func(*rig) Result {
		return func(r *rig) Result { return r.call(tool, args) }
	}
	as := func(change func(*action.Principal)) func(*rig) Result {
		return func(r *rig) Result {
			p := bot
			change(&p)
			return r.callAs(p, "scale_deployment", `{"namespace":"shop","name":"web","replicas":5}`)
		}
	}
	five := func(r *rig) Result { return r.scale(5) }
	for _, row := range []struct {
		name   string
		before func(*rig)
		call   func(*rig) Result
		want   Status
	}{
		{"the same again", nil, five, Succeeded},
		{"another object of the namespace", func(r *rig) { r.cluster.set("deployments.apps/scale shop/api", scaleObject("u-9", 2)) },
			call("scale_deployment", `{"namespace":"shop","name":"api","replicas":5}`), Succeeded},
		{"another namespace", func(r *rig) { r.cluster.set("deployments.apps/scale shop2/web", scaleObject("u-9", 2)) },
			call("scale_deployment", `{"namespace":"shop2","name":"web","replicas":5}`), Pending},
		{"a risk", nil, func(r *rig) Result { return r.scale(0) }, Pending},
		{"another tool", func(r *rig) { r.cluster.set("configmaps/ shop/a", map[string]any{"data": map[string]any{"a": "1"}}) },
			call("apply_manifest", `{"manifest":"{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: shop}, data: {a: '2'}}"}`), Pending},
		{"an object that is not there", func(r *rig) { r.cluster.set(webScale, nil); delete(r.cluster.objects, webScale) }, five, Pending},
		{"no change", nil, func(r *rig) Result { return r.scale(3) }, Pending},
		{"another principal", nil, as(func(p *action.Principal) { p.Subject = "other" }), Pending},
		{"another client", nil, as(func(p *action.Principal) { p.Client = "other" }), Pending},
		{"for somebody", nil, as(func(p *action.Principal) { p.OnBehalfOf = "anna" }), Pending},
		{"right before its end", func(r *rig) { r.later(30*time.Minute - 1) }, five, Succeeded},
		{"at its end", func(r *rig) { r.later(30 * time.Minute) }, five, Pending},
		{"policy denies now", func(r *rig) {
			r.rules(askAlways + "\n  - {name: freeze, effect: deny, match: {verbs: [patch]}, message: Code freeze.}")
		}, five, Denied},
		{"policy denies this value now", func(r *rig) {
			r.rules(askAlways + "\n  - {name: no, effect: deny, when: 'object.spec.replicas == 5'}")
		}, five, Denied},
		{"no rule is about it any more", func(r *rig) { r.rules("  - {name: other, effect: allow, match: {verbs: [get]}}") }, five, Denied},
		{"policy asks for two now", func(r *rig) { r.rules(strings.Replace(askAlways, "[sre]", "[sre], count: 2", 1)) }, five, Pending},
		{"policy asks others now", func(r *rig) { r.rules(strings.Replace(askAlways, "[sre]", "[security]", 1)) }, five, Pending},
		{"policy grants nothing now", func(r *rig) { r.rules(strings.Replace(askAlways, "expires: 1h", "expires: 1h, grant: never", 1)) }, five, Pending},
		{"the server grants nothing now", func(r *rig) { r.GrantFor = 0 }, five, Pending},
		{"policy allows it now", func(r *rig) { r.rules(allowAll) }, five, Succeeded},
		{"a limit is drawn on all the same", func(r *rig) {
			r.specs("  rules:\n"+askAlways, "  limits:\n  - {name: few, calls: 1, per: 1h}")
			r.scale(4)
		}, five, Denied},
		{"the same call was rejected", func(r *rig) {
			r.rules(strings.Replace(askAlways, "[sre]", "[security]", 1))
			id := r.scale(5).Op
			if _, err := r.Vote(id, approvals.Person{ID: "local:dora", Name: "dora", Sets: []string{"security"}}, approvals.Ballot{Reason: "not five"}); err != nil {
				r.t.Fatal(err)
			}
			r.rules(askAlways)
		}, five, Denied},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t, askAlways)
			r.grant(3)
			if row.before != nil {
				row.before(r)
			}
			sent := len(r.cluster.executed())
			got := row.call(r)
			if got.Status != row.want {
				t.Errorf("got %+v; want %s", got, row.want)
			}
			if more := len(r.cluster.executed()) - sent; (more == 1) != (row.want == Succeeded) {
				t.Errorf("%d more were sent", more)
			}
		})
	}
}

// What is never granted is not offered, and a vote that takes it anyway is refused.
func TestNotGrantable(t *testing.T) {
	for _, row := range []struct {
		name, rules, tool, args string
		want                    time.Duration
	}{
		{"a number", askAlways, "scale_deployment", `{"namespace":"shop","name":"web","replicas":3}`, 30 * time.Minute},
		{"to zero", askAlways, "scale_deployment", `{"namespace":"shop","name":"web","replicas":0}`, 0},
		{"grant: never", strings.Replace(askAlways, "expires: 1h", "expires: 1h, grant: never", 1), "scale_deployment", `{"namespace":"shop","name":"web","replicas":3}`, 0},
		{"a new object", askAlways, "apply_manifest", `{"manifest":"{apiVersion: v1, kind: ConfigMap, metadata: {name: new, namespace: shop}, data: {a: '2'}}"}`, 0},
		{"a value of a ConfigMap", askAlways, "apply_manifest", `{"manifest":"{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: shop}, data: {a: '2'}}"}`, 30 * time.Minute},
		{"by force", askAlways, "apply_manifest", `{"force":true,"manifest":"{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: shop}, data: {a: '2'}}"}`, 0},
		{"a Secret", askAlways, "apply_manifest", `{"manifest":"{apiVersion: v1, kind: Secret, metadata: {name: a, namespace: shop}, data: {a: 'Mg=='}}"}`, 0},
		{"a deletion", askAlways, "delete_resource", `{"kind":"configmap","namespace":"shop","name":"a"}`, 0},
		{"a read", askAlways, "get_resource", `{"kind":"configmap","namespace":"shop","name":"a"}`, 0},
		{"a guard that is off", askAlways + "\n  guardsOff: [guard:host-access]", "apply_manifest", `{"manifest":"{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop}, spec: {hostPID: true, containers: [{name: c, image: x}]}}"}`, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t, row.rules)
			r.cluster.set("configmaps/ shop/a", map[string]any{"metadata": map[string]any{"uid": "u"}, "data": map[string]any{"a": "1"}})
			r.cluster.set("secrets/ shop/a", map[string]any{"metadata": map[string]any{"uid": "u"}, "data": map[string]any{"a": "MQ=="}})
			r.cluster.set("pods/ shop/a", map[string]any{"metadata": map[string]any{"uid": "u"}, "spec": map[string]any{"hostPID": true, "containers": []any{map[string]any{"name": "c", "image": "y"}}}})
			got := r.call(row.tool, row.args)
			op, err := r.store.Operation(got.Op)
			if got.Status != Pending || err != nil || op.GrantFor != row.want {
				t.Fatalf("got %+v, %v; granted for %s, want %s", got, err, op.GrantFor, row.want)
			}
			_, err = r.Vote(got.Op, sre("bea"), approvals.Ballot{Approve: true, Grant: true})
			if want := map[bool]error{true: approvals.ErrNotGrantable}[row.want == 0]; !errors.Is(err, want) || (len(r.store.grants) == 1) != (row.want != 0) {
				t.Errorf("%v, %d grants", err, len(r.store.grants))
			}
			if row.want == 0 {
				r.wantSent()
			}
		})
	}
}

// Who takes a grant back stops what comes next, and is on record.
func TestRevoke(t *testing.T) {
	r := newRig(t, askAlways)
	g := r.grant(3)
	if _, err := r.RevokeGrant("no such", sre("carl"), ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("a grant that is not there: %v", err)
	}
	got, err := r.RevokeGrant(g.ID, sre("carl"), "over; token=ghp_0123456789abcdefghijABCDEFGHIJ012345 "+strings.Repeat("x", 2*maxMessage))
	if err != nil || got.Revoked != "carl (local:carl)" || got.Revision != 2 {
		t.Fatalf("got %+v, %v", got, err)
	}
	revoked := r.store.of(audit.GrantRevoked)
	if len(revoked) != 1 || revoked[0].Op != g.Op || revoked[0].Approval.Grant != g.ID || !slices.Equal(revoked[0].Approval.By, []string{"carl (local:carl)"}) ||
		!strings.HasPrefix(revoked[0].Approval.Reason, "over; ") || strings.Contains(revoked[0].Approval.Reason, "ghp_") || len(revoked[0].Approval.Reason) > maxMessage+100 {
		t.Errorf("on record is %+v, %+v", revoked, revoked[0].Approval)
	}
	if got := r.scale(5); got.Status != Pending {
		t.Errorf("the next of the kind: %+v", got)
	}
	r.wantSent(scaled)
	// Twice is once, and the first is who did it.
	if again, err := r.RevokeGrant(g.ID, sre("bea"), ""); err != nil || again.Revoked != "carl (local:carl)" || r.store.count(audit.GrantRevoked) != 1 {
		t.Errorf("again: %+v, %v", again, err)
	}
	if list := r.onlyGrant(); list.Revoked == "" {
		t.Errorf("listed is %+v", list)
	}
	r.later(30 * time.Minute)
	if list, err := r.Grants(); err != nil || len(list) != 0 {
		t.Errorf("after its end: %+v, %v", list, err)
	}
	if _, err := r.RevokeGrant(g.ID, sre("bea"), ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("after its end: %v", err)
	}
}

// A grant that is taken back between being found and being used is not used,
// and one that is used meanwhile is taken back all the same.
func TestRevokeAtTheSameTime(t *testing.T) {
	t.Run("before its use is stored", func(t *testing.T) {
		r := newRig(t, askAlways)
		g := r.grant(3)
		var once sync.Once
		r.store.meanwhile = func(b Batch) {
			if holds(b, audit.ExecStarted) {
				once.Do(func() {
					if _, err := r.RevokeGrant(g.ID, sre("carl"), ""); err != nil {
						t.Error(err)
					}
				})
			}
		}
		if got := r.scale(5); got.Status != Pending {
			t.Errorf("got %+v", got)
		}
		r.wantSent(scaled)
		if g := r.onlyGrant(); g.Uses != 0 || g.Revoked == "" {
			t.Errorf("the grant is %+v", g)
		}
	})
	t.Run("before its end is stored", func(t *testing.T) {
		r := newRig(t, askAlways)
		g := r.grant(3)
		var once sync.Once
		r.store.meanwhile = func(b Batch) {
			if holds(b, audit.GrantRevoked) {
				once.Do(func() {
					if got := r.scale(5); got.Status != Succeeded {
						t.Errorf("got %+v", got)
					}
				})
			}
		}
		if got, err := r.RevokeGrant(g.ID, sre("carl"), ""); err != nil || got.Uses != 1 || got.Revoked == "" || r.store.count(audit.GrantRevoked) != 1 {
			t.Errorf("got %+v, %v", got, err)
		}
		if got := r.scale(6); got.Status != Pending {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("many", func(t *testing.T) {
		r := newRig(t, askAlways)
		g := r.grant(3)
		for n := range 12 {
			r.cluster.set(fmt.Sprintf("deployments.apps/scale shop/w%d", n), scaleObject("u-9", 2))
		}
		var wg sync.WaitGroup
		results := make(chan Result, 12)
		for n := range cap(results) {
			wg.Go(func() {
				results <- r.call("scale_deployment", fmt.Sprintf(`{"namespace":"shop","name":"w%d","replicas":3}`, n))
			})
		}
		wg.Go(func() {
			if _, err := r.RevokeGrant(g.ID, sre("carl"), ""); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		close(results)
		ran := 0
		for got := range results {
			if got.Status == Succeeded {
				ran++
			} else if got.Status != Pending {
				t.Errorf("got %+v", got)
			}
		}
		revoked := false
		for _, record := range r.store.all() {
			revoked = revoked || record.Type == audit.GrantRevoked
			if revoked && record.Type == audit.ExecStarted {
				t.Error("something is begun after it was taken back")
			}
		}
		if g := r.onlyGrant(); g.Uses != ran || len(r.cluster.executed()) != ran+1 || !revoked {
			t.Errorf("%d ran, %d were sent, and the grant says %+v", ran, len(r.cluster.executed()), g)
		}
	})
}

// Many calls under one grant each draw once on a limit, whoever is quicker.
func TestGrantDrawsOnce(t *testing.T) {
	r := newRig(t, askAlways)
	r.grant(3)
	const n = 8
	r.specs("  rules:\n"+askAlways, fmt.Sprintf("  limits:\n  - {name: few, calls: %d, per: 1h}", n))
	for i := range n {
		r.cluster.set(fmt.Sprintf("deployments.apps/scale shop/w%d", i), scaleObject("u-9", 2))
	}
	r.store.meanwhile = func(b Batch) {
		if holds(b, audit.ExecStarted) {
			r.store.meanwhile = nil
			if got := r.call("scale_deployment", `{"namespace":"shop","name":"w0","replicas":3}`); got.Status != Succeeded {
				t.Errorf("got %+v", got)
			}
		}
	}
	for i := 1; i < n; i++ {
		if got := r.call("scale_deployment", fmt.Sprintf(`{"namespace":"shop","name":"w%d","replicas":3}`, i)); got.Status != Succeeded {
			t.Errorf("%d of %d: %+v", i, n, got)
		}
	}
	if got := r.onlyGrant().Uses; got != n {
		t.Errorf("used %d times", got)
	}
}

// An object that changes while the request is on its way is looked at again,
// under the grant as it is then.
func TestGrantWhenTheObjectMoves(t *testing.T) {
	moved := func(uid string, replicas int64, version string) map[string]any {
		o := scaleObject(uid, replicas)
		o["metadata"].(map[string]any)["resourceVersion"] = version
		return o
	}
	for _, row := range []struct {
		name  string
		while func(r *rig, g approvals.Grant)
		want  Status
	}{
		{"in what everybody changes", func(*rig, approvals.Grant) {}, Succeeded},
		{"and it is taken back", func(r *rig, g approvals.Grant) {
			if _, err := r.RevokeGrant(g.ID, sre("carl"), ""); err != nil {
				r.t.Error(err)
			}
		}, Failed},
		{"and its time is over", func(r *rig, _ approvals.Grant) { r.later(time.Hour) }, Failed},
		{"and now another field would change", func(r *rig, _ approvals.Grant) {
			o := moved("u-1", 3, "8")
			o["spec"].(map[string]any)["paused"] = true
			r.cluster.objects[webScale] = o
		}, Failed},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t, askAlways)
			g := r.grant(3)
			r.cluster.set(webScale, moved("u-1", 3, "7"))
			var once sync.Once
			r.cluster.sending = func() { // the cluster's lock is held
				once.Do(func() {
					r.cluster.objects[webScale] = moved("u-1", 3, "8")
					row.while(r, g)
				})
			}
			got := r.scale(5)
			if got.Status != row.want {
				t.Errorf("got %+v; want %s", got, row.want)
			}
			if row.want == Failed && !strings.Contains(got.Reason, "the grant does not cover what would change now") {
				t.Errorf("the reason is %q", got.Reason)
			}
			want := map[Status]int{Succeeded: 3, Failed: 2}[row.want] // and the one that was asked
			if n := len(r.cluster.executed()); n != want {
				t.Errorf("%d requests were sent; want %d", n, want)
			}
		})
	}
}

// A crash under a grant leaves what a crash always leaves: it is looked into,
// and not sent again.
func TestGrantAndCrash(t *testing.T) {
	r := newRig(t, askAlways)
	g := r.grant(3)
	r.store.fault = func(b Batch) fault {
		if holds(b, audit.ExecOutcome) {
			return lost
		}
		return none
	}
	id := r.scale(5).Op
	r.restart()
	if op := r.reaches(id, approvals.Reconciled); op.Evidence != Applied || op.Grant != g.ID {
		t.Errorf("got %+v", op)
	}
	r.wantSent(scaled, scaled)
	if g := r.onlyGrant(); g.Uses != 1 {
		t.Errorf("the grant is %+v", g)
	}
}

func (r *rig) ask(n int) Result {
	r.cluster.set(fmt.Sprintf("deployments.apps/scale shop/w%d", n), scaleObject("u-9", 2))
	return r.call("scale_deployment", fmt.Sprintf(`{"namespace":"shop","name":"w%d","replicas":3}`, n))
}

// An agent may have so many questions open and no more, and each way for one to
// end makes room again.
func TestTooManyQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, askAlways)
		for n := range r.MaxPending {
			if got := r.ask(n); got.Status != Pending {
				t.Fatalf("question %d: %+v", n, got)
			}
		}
		pass := func(d time.Duration) {
			r.later(d)
			time.Sleep(d)
		}
		next := r.MaxPending
		full := func(when string) {
			t.Helper()
			next++
			got := r.ask(next)
			if got.Status != Denied || !strings.Contains(got.Reason, "20 of your calls wait for approval") || !strings.Contains(got.NextStep, "cancel_operation") {
				t.Errorf("%s: %+v", when, got)
			}
		}
		room := func(when string) { // and it is taken at once
			t.Helper()
			next++
			if got := r.ask(next); got.Status != Pending {
				t.Errorf("%s: %+v", when, got)
			}
			full(when + ", then")
		}
		full("at first")
		if n := r.store.count(audit.ApprovalRequested); n != 20 {
			t.Errorf("%d questions on record", n)
		}
		id := r.ask(0).Op
		if op, err := r.store.Operation(id); err != nil || op.State != approvals.PendingApproval || r.store.count(audit.ApprovalRequested) != 20 {
			t.Errorf("the same call does not join: %+v, %v", op, err)
		}
		other := bot
		other.Subject = "other"
		if got := r.callAs(other, "scale_deployment", `{"namespace":"shop","name":"web","replicas":3}`); got.Status != Pending {
			t.Errorf("another principal: %+v", got)
		}
		client := bot
		client.Client, client.OnBehalfOf = "other", "anna"
		if got := r.callAs(client, "scale_deployment", `{"namespace":"shop","name":"web","replicas":3}`); got.Status != Denied {
			t.Errorf("the same principal in another dress: %+v", got)
		}

		r.approve(id)
		r.reaches(id, approvals.Succeeded)
		room("approved")

		id = r.ask(1).Op
		r.call("cancel_operation", `{"op":"`+id+`"}`)
		full("withdrawn")
		pass(withdrawnFor - time.Second)
		full("withdrawn a while ago")
		pass(2 * time.Second)
		room("withdrawn a minute ago")

		id = r.ask(2).Op
		if _, err := r.Vote(id, sre("bea"), approvals.Ballot{Reason: "no"}); err != nil {
			t.Fatal(err)
		}
		full("rejected")
		pass(r.Cooldown - time.Second)
		full("rejected a while ago")
		pass(2 * time.Second)
		room("after the cool-down")

		r.restart()
		full("after a restart")
		id = r.ask(3).Op
		r.call("cancel_operation", `{"op":"`+id+`"}`)
		r.restart() // which knows only what is pending
		room("withdrawn before a restart")

		pass(2 * time.Hour) // until they all have expired
		for n := range r.MaxPending {
			if got := r.ask(1000 + n); got.Status != Pending {
				t.Fatalf("all expired, question %d: %+v", n, got)
			}
		}
		full("again")
	})
}

// A question that takes the place of a stale one is not the agent's doing, and
// counts; and what was denied or not stored does not.
func TestQuestionsThatCount(t *testing.T) {
	r := newRig(t, askAlways)
	r.MaxPending = 1
	id := r.scale(3).Op
	r.cluster.set(webScale, scaleObject("u-1", 7))
	beside := make(chan Result, 1)
	r.store.meanwhile = func(b Batch) {
		if len(b.Operations) == 2 && b.Operations[0].State == approvals.Stale {
			beside <- r.ask(1)
		}
	}
	r.approve(id)
	if got := <-beside; got.Status != Denied {
		t.Errorf("beside the one that is about to be asked again: %+v", got)
	}
	fresh := r.reaches(id, approvals.Stale).SupersededBy
	if got := r.ask(1); got.Status != Denied {
		t.Errorf("beside the one that is asked again: %+v", got)
	}
	r.approve(fresh)
	r.reaches(fresh, approvals.Succeeded)
	if got := r.ask(2); got.Status != Pending {
		t.Errorf("got %+v", got)
	}

	r = newRig(t, askAlways)
	r.MaxPending = 1
	failed := false
	r.store.fault = func(b Batch) fault {
		if holds(b, audit.ApprovalRequested) && !failed {
			failed = true
			return lost
		}
		return none
	}
	r.scale(3)
	r.store.mu.Lock()
	r.store.poisoned = nil
	r.store.mu.Unlock()
	if got := r.scale(4); got.Status != Pending {
		t.Errorf("what was not stored counts: %+v", got)
	}

	// Two votes that are needed are one question.
	r = newRig(t, strings.Replace(askAlways, "[sre]", "[sre], count: 2", 1))
	r.MaxPending = 2
	id = r.scale(3).Op
	r.approve(id)
	if got := r.ask(1); got.Status != Pending {
		t.Errorf("got %+v", got)
	}
	if got := r.ask(2); got.Status != Denied {
		t.Errorf("got %+v", got)
	}
	// A grant needs no room.
	r = newRig(t, askAlways)
	r.grant(3)
	r.MaxPending = 0
	if got := r.scale(4); got.Status != Succeeded {
		t.Errorf("under a grant: %+v", got)
	}
}

// Where a question is asked: where its rules say, else where its namespaces say,
// else where questions go.
func TestChannels(t *testing.T) {
	in := func(channel string) string {
		return strings.Replace(askAlways, "expires: 1h", "expires: 1h, channel: "+channel, 1)
	}
	const both = `{"manifest":"{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: shop}, data: {x: '1'}}\n---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: b, namespace: shop}, data: {x: '1'}}\n---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: desk}, data: {x: '1'}}\n"}`
	for _, row := range []struct {
		name, rules, label, tool, args string
		unreadable                     bool
		want                           string
		read                           int
	}{
		{name: "nothing says where", rules: askAlways, want: ""},
		{name: "the rule", rules: in("C0RULE"), want: "C0RULE"},
		{name: "two rules", rules: in("C0RULE") + "\n" + strings.Replace(in("C0OTHER"), "name: ask", "name: too", 1), want: "C0RULE C0OTHER"},
		{name: "two rules of one mind", rules: in("C0RULE") + "\n" + strings.Replace(in("C0RULE"), "name: ask", "name: too", 1), want: "C0RULE"},
		{name: "the namespace", rules: askAlways, label: "name", want: "shop", read: 1},
		{name: "the rule before the namespace", rules: in("C0RULE"), label: "name", want: "C0RULE"},
		{name: "a label that is not there", rules: askAlways, label: "other", want: "", read: 1},
		{name: "labels that cannot be read", rules: askAlways, label: "name", unreadable: true, want: "", read: 1},
		{name: "labels that policy has read", rules: strings.Replace(askAlways, "principals:", "namespaceSelector: {matchLabels: {name: shop}}, principals:", 1), label: "name", want: "shop", read: 1},
		{name: "several namespaces", rules: askAlways, label: "name", tool: "apply_manifest", args: both, want: "shop desk", read: 2},
		{name: "a namespace that is not there", rules: askAlways, label: "name", tool: "scale_deployment", args: `{"namespace":"absent","name":"web","replicas":3}`, want: "", read: 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t, row.rules)
			r.ChannelLabel = row.label
			if row.unreadable {
				r.cluster.unreadable = errors.New("connection refused")
			}
			got := r.scale(3)
			if row.tool != "" {
				r = newRig(t, row.rules)
				r.ChannelLabel = row.label
				r.cluster.set("deployments.apps/scale absent/web", scaleObject("u-9", 2))
				got = r.call(row.tool, row.args)
			}
			op, err := r.store.Operation(got.Op)
			if got.Status != Pending || err != nil || strings.Join(op.Channels, " ") != row.want {
				t.Errorf("got %+v, %v: asked in %q; want %q", got, err, op.Channels, row.want)
			}
			if namespaces, _ := r.cluster.read(); len(namespaces) != row.read {
				t.Errorf("read %v", namespaces)
			}
		})
	}
}

// Who is asked again is told what is different, and that it can be a kind.
func TestDriftIsTold(t *testing.T) {
	r := newRig(t, askAlways)
	id := r.scale(3).Op
	r.cluster.set(webScale, scaleObject("u-1", 7))
	if _, err := r.Vote(id, sre("bea"), approvals.Ballot{Approve: true, Grant: true}); err != nil {
		t.Fatal(err)
	}
	fresh, err := r.store.Operation(r.reaches(id, approvals.Stale).SupersededBy)
	if want := []string{"patch deployments.apps/scale shop/web /spec/replicas: was 2 -> 3, now 7 -> 3"}; err != nil || !slices.Equal(fresh.Drift, want) {
		t.Errorf("told is %q, %v; want %q", fresh.Drift, err, want)
	}
	if fresh.GrantFor != 30*time.Minute || fresh.Grant != "" || fresh.State != approvals.PendingApproval || len(fresh.Votes) != 0 {
		t.Errorf("asked again: %+v", fresh)
	}
	r.wantSent()
}

// What a person writes is masked before it is kept, told or recorded.
func TestReasonIsMasked(t *testing.T) {
	const token = "ghp_0123456789abcdefghijABCDEFGHIJ012345"
	for _, approve := range []bool{true, false} {
		r := newRig(t, askAlways)
		id := r.scale(3).Op
		op, err := r.Vote(id, sre("bea"), approvals.Ballot{Approve: approve, Reason: "use " + token})
		if err != nil {
			t.Fatal(err)
		}
		_, late := r.Vote(id, sre("carl"), approvals.Ballot{Approve: approve, Reason: "use " + token})
		told := r.call("get_operation", `{"op":"`+id+`"}`)
		for name, v := range map[string]any{"the operation": op, "the log": r.store.all(), "the agent": told, "the refusal": fmt.Sprint(late)} {
			if strings.Contains(string(mustJSON(t, v)), "ghp_") {
				t.Errorf("approve %v: %s has it", approve, name)
			}
		}
		if voted := r.store.of(audit.ApprovalVoted); len(voted) != 2 || !strings.HasPrefix(voted[0].Approval.Reason, "use ") {
			t.Errorf("on record is %+v", voted)
		}
	}
}
