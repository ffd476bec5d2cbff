package main

import (
	"bytes"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"countersign/configs"
	"countersign/policy"
)

const (
	oneRule   = "apiVersion: countersign/v1alpha1\nkind: Policy\nmetadata: {name: p}\nspec:\n  rules: [{name: one, effect: allow, match: {verbs: [get]}}]\n"
	otherRule = "apiVersion: countersign/v1alpha1\nkind: Policy\nmetadata: {name: p}\nspec:\n  guardsOff: [\"guard:proxy\"]\n  rules: [{name: other, effect: allow, match: {verbs: [get]}}]\n"
)

// reloaded is a policy in force whose changes are noted.
type reloaded struct {
	*livePolicy
	log     bytes.Buffer
	changes []string // digests, or "failure"
}

func live(t *testing.T) *reloaded {
	t.Helper()
	in(t, map[string]string{"p/p.yaml": oneRule})
	r := &reloaded{}
	var err error
	if r.livePolicy, err = newLivePolicy(&configs.Config{Policy: "p"}, slog.New(slog.NewTextHandler(&r.log, nil))); err != nil {
		t.Fatal(err)
	}
	r.changed = func(digest string, err error) {
		if err != nil {
			digest = "failure"
		}
		r.changes = append(r.changes, digest)
	}
	return r
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// The last word on record is what is in force: also when a mistake is undone.
func TestReloadAfterAMistake(t *testing.T) {
	r := live(t)
	good := r.Digest
	r.reload()
	if r.changes != nil {
		t.Errorf("nothing changed, and %v is on record", r.changes)
	}
	write(t, "p/p.yaml", "x: 1")
	r.reload()
	if r.Error == "" || r.Digest != good || r.set.Load().Digest() != good {
		t.Errorf("got %+v", r.PolicyStatus)
	}
	write(t, "p/p.yaml", oneRule)
	r.reload()
	if r.Error != "" || r.Digest != good || !slices.Equal(r.changes, []string{"failure", good}) {
		t.Errorf("got %+v, on record %v", r.PolicyStatus, r.changes)
	}
}

// A folder that is exchanged while it is read is left for the next look.
func TestReloadTakesNoMixture(t *testing.T) {
	for _, meanwhile := range []string{otherRule, "x: 1"} {
		r := live(t)
		good := r.Digest
		write(t, "p/q.yaml", strings.Replace(oneRule, "one", "two", 1))
		load := r.load
		r.load = func() (*policy.Set, error) {
			write(t, "p/p.yaml", meanwhile)
			return load()
		}
		r.reload()
		if r.changes != nil || r.Digest != good || r.Error != "" || r.last == r.held() {
			t.Errorf("on record %v, last look %s, got %+v", r.changes, r.last, r.PolicyStatus)
		}
		r.reload() // now the folder is at rest
		if len(r.changes) != 1 || r.last != r.held() || (r.Error == "") != (meanwhile == otherRule) {
			t.Errorf("on record %v, got %+v", r.changes, r.PolicyStatus)
		}
	}
}

// A guard that is no longer in force is said where operators look.
func TestReloadTellsOfGuards(t *testing.T) {
	r := live(t)
	if strings.Contains(r.log.String(), "guardsOff") || r.Info.Rules != 1 || r.Info.GuardsOff != nil {
		t.Errorf("got %+v, %s", r.Info, &r.log)
	}
	write(t, "p/p.yaml", otherRule)
	r.reload()
	if !strings.Contains(r.log.String(), "level=WARN msg=\"policy switches built-in guards off\" guardsOff=[guard:proxy]") || !slices.Equal(r.status().Info.GuardsOff, []string{"guard:proxy"}) {
		t.Errorf("got %+v, %s", r.Info, &r.log)
	}
}
