package policy

import (
	"slices"
	"strings"

	"countersign/action"
)

// The risks that a Preview can show, in the words that conditions compare with
// and approvers read.
const (
	RiskReplicasToZero  = "replicas to zero"
	RiskImageChanged    = "image changed"
	RiskCommandChanged  = "command changed"
	RiskPrivilegeGained = "privilege gained"
	RiskIdentityChanged = "service account changed"
	RiskSelectorChanged = "selector changed"
	RiskDataRemoved     = "data removed"
	RiskDeleted         = "object deleted"
	RiskOwnership       = "owners or finalizers changed"
	RiskForced          = "fields of other managers taken over"
	RiskOrphaned        = "dependents left behind"
	RiskNoGrace         = "no grace period"
)

// holders are kinds whose deletion takes data with it.
var holders = []string{
	"configmaps", "secrets", "persistentvolumeclaims", "persistentvolumes", "namespaces",
	"customresourcedefinitions.apiextensions.k8s.io",
}

// dataFields are where objects hold data rather than settings.
var dataFields = []string{"/data/", "/binaryData/", "/stringData/", "/spec/volumeClaimTemplates/"}

// risks sums up what a request would do that a person should not overlook.
func (f *facts) risks() []string {
	if f.found == nil && f.req.Preview != nil {
		f.found = notNil(f.findRisks())
	}
	return f.found
}

func (f *facts) findRisks() []string {
	a, p := f.req.Action, f.req.Preview
	var found []string
	add := func(risk string, when bool) {
		if when && !slices.Contains(found, risk) {
			found = append(found, risk)
		}
	}
	for _, c := range p.Diff {
		add(RiskReplicasToZero, strings.HasSuffix(c.Path, "/replicas") && isZero(c.New))
		add(RiskSelectorChanged, c.Path == "/spec/selector" || strings.HasPrefix(c.Path, "/spec/selector/"))
		add(RiskDataRemoved, removesData(c))
		add(RiskOwnership, owned(c.Path))
	}
	if a.Verb == action.Delete {
		add(RiskDeleted, true)
		add(RiskDataRemoved, slices.Contains(holders, a.Resource.GroupResource()))
	}
	add(RiskForced, a.Options.Force)
	add(RiskOrphaned, a.Options.PropagationPolicy == "Orphan")
	add(RiskNoGrace, a.Options.GracePeriodSeconds != nil && *a.Options.GracePeriodSeconds == 0)
	now, before := f.pods(), f.oldPods()
	add(RiskImageChanged, p.Live != nil && len(newOf(images(before.pods), images(now.pods))) > 0)
	add(RiskCommandChanged, p.Live != nil && len(newOf(commands(before.pods), commands(now.pods))) > 0)
	add(RiskIdentityChanged, p.Live != nil && len(newOf(accounts(before.pods), accounts(now.pods))) > 0)
	add(RiskPrivilegeGained, len(newOf(privileges(before), privileges(now))) > 0)
	return found
}

func owned(path string) bool {
	return strings.HasPrefix(path, "/metadata/ownerReferences") || strings.HasPrefix(path, "/metadata/finalizers")
}

func removesData(c action.Change) bool {
	if c.Op != "remove" {
		return false
	}
	return slices.ContainsFunc(dataFields, func(field string) bool {
		return strings.HasPrefix(c.Path, field) || c.Path+"/" == field
	})
}

func isZero(v any) bool { return v == int64(0) || v == float64(0) }

// newOf lists what is in now and not in before.
func newOf(before, now []string) []string {
	return slices.DeleteFunc(now, func(s string) bool { return slices.Contains(before, s) })
}

func images(pods []podSpec) (out []string) {
	for _, p := range pods {
		for _, c := range p.containers() {
			if c, ok := c.(map[string]any); ok {
				image, _ := c["image"].(string)
				out = append(out, image)
			}
		}
	}
	return out
}

// commands are what each container runs, beside what its image says.
func commands(pods []podSpec) (out []string) {
	for _, p := range pods {
		for _, c := range p.containers() {
			c, _ := c.(map[string]any)
			run := map[string]any{}
			for _, field := range []string{"command", "args", "lifecycle", "livenessProbe", "readinessProbe", "startupProbe"} {
				if c[field] != nil {
					run[field] = c[field]
				}
			}
			text, _ := action.Canonical([]any{c["name"], run})
			out = append(out, p.path+" "+string(text))
		}
	}
	return out
}

func accounts(pods []podSpec) (out []string) {
	for _, p := range pods {
		out = append(out, p.path+" "+account(p.spec))
	}
	return out
}

// privileges are what a pod asks for beyond the baseline standard. What looks
// like a pod and cannot be read as one may ask for anything.
func privileges(pods *podFacts) (out []string) {
	all, err := pods.check()
	if err != nil {
		return []string{err.Error()}
	}
	for _, v := range all {
		if v.level == "baseline" {
			out = append(out, v.path+" "+v.check+" "+v.detail)
		}
	}
	return out
}
