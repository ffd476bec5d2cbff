package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/google/cel-go/common/types"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	psa "k8s.io/pod-security-admission/api"
	psapolicy "k8s.io/pod-security-admission/policy"

	"countersign/action"
)

// podSpec is one pod specification found in an object.
type podSpec struct {
	path string // JSON Pointer
	spec map[string]any
	meta map[string]any // of the pod or the template, may be nil
}

// containerLists are the fields of a pod specification that hold containers.
var containerLists = []string{"containers", "initContainers", "ephemeralContainers"}

// findPods finds every pod specification in an object by its shape, not by the
// object's kind: a Pod's own, those of templates in Deployments, CronJobs, Lists
// and of kinds that this server has never heard of. What has containers or
// volumes, names a service account, or asks for the host's namespaces, is one.
func findPods(object map[string]any) ([]podSpec, error) {
	var f podFinder
	f.below(object, nil)
	return f.found, f.err
}

// maxPods and maxPodPath bound how many pod specifications of one object are
// looked at, and how deep they lie. More was made to be too much.
const (
	maxPods    = 1000
	maxPodPath = 4 << 10 // bytes
)

const tooManyPods = "the object holds more pods, or deeper ones, than are looked at"

type podFinder struct {
	path  []string // to the value at hand; written out only where a pod is
	found []podSpec
	err   error
}

func (f *podFinder) below(v any, meta map[string]any) {
	switch v := v.(type) {
	case map[string]any:
		if isPodSpec(v) {
			f.add(v, meta)
		}
		sibling, _ := v["metadata"].(map[string]any)
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if key == "spec" {
				f.step(key, v[key], sibling) // a template's metadata stands beside its spec
			} else {
				f.step(key, v[key], nil)
			}
		}
	case []any:
		for i, item := range v {
			f.step(strconv.Itoa(i), item, nil)
		}
	}
}

func (f *podFinder) step(key string, v any, meta map[string]any) {
	f.path = append(f.path, key)
	f.below(v, meta)
	f.path = f.path[:len(f.path)-1]
}

func (f *podFinder) add(spec, meta map[string]any) {
	var path strings.Builder
	for _, key := range f.path {
		path.WriteString("/" + action.EscapePointer(key))
		if path.Len() > maxPodPath {
			f.err = errors.New(tooManyPods)
			return
		}
	}
	if len(f.found) == maxPods {
		f.err = errors.New(tooManyPods)
		return
	}
	f.found = append(f.found, podSpec{path.String(), spec, meta})
}

func isPodSpec(v map[string]any) bool {
	for _, field := range containerLists {
		if holdsMaps(v[field]) {
			return true
		}
	}
	return holdsMaps(v["volumes"]) || account(v) != "" || v["hostNetwork"] == true || v["hostPID"] == true || v["hostIPC"] == true
}

func holdsMaps(v any) bool {
	list, _ := v.([]any)
	return slices.ContainsFunc(list, func(item any) bool {
		_, ok := item.(map[string]any)
		return ok
	})
}

// account is the service account that a pod names. serviceAccount is the old
// name of the field, which counts where the new one is empty (core/v1 PodSpec).
func account(spec map[string]any) string {
	name, _ := spec["serviceAccountName"].(string)
	if name == "" {
		name, _ = spec["serviceAccount"].(string)
	}
	return name
}

// containers are those of all three lists.
func (p podSpec) containers() []any {
	var all []any
	for _, field := range containerLists {
		list, _ := p.spec[field].([]any)
		all = append(all, list...)
	}
	return all
}

// secrets names the Secrets that a container of the pod could read: through its
// environment, a volume or a projected volume. imagePullSecrets are the
// kubelet's, and are given in another form. A pod within the pod has its own.
func (p podSpec) secrets() []string {
	found := map[string]bool{}
	secretsBelow(found, p.spec)
	return slices.Sorted(maps.Keys(found))
}

func secretsBelow(found map[string]bool, v any) {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			inner, _ := value.(map[string]any)
			name, _ := value.(string)
			switch {
			case key == "secretName" && name != "":
				found[name] = true
			case inner != nil && (key == "secret" || strings.HasSuffix(key, "SecretRef") || key == "secretRef" || key == "secretKeyRef"):
				if name, ok := inner["name"].(string); ok {
					found[name] = true
				}
			}
			if inner == nil || !isPodSpec(inner) {
				secretsBelow(found, value)
			}
		}
	case []any:
		for _, item := range v {
			if inner, ok := item.(map[string]any); !ok || !isPodSpec(inner) {
				secretsBelow(found, item)
			}
		}
	}
}

const notAPod = "what is at "

// podFacts are the pods of an object and what they violate, each worked out once.
type podFacts struct {
	pods       []podSpec
	violations []violation
	err        error // of finding the pods
	unreadable error // of checking them
	looked     bool
	checked    bool
}

func (p *podFacts) look(object map[string]any) {
	if !p.looked {
		p.looked = true
		p.pods, p.err = findPods(object)
	}
}

// values are the pods as conditions see them.
func (p *podFacts) values() any {
	if p.err != nil {
		return types.WrapErr(p.err)
	}
	out := make([]any, len(p.pods))
	for i, pod := range p.pods {
		containers := pod.containers()
		if containers == nil {
			containers = []any{}
		}
		out[i] = map[string]any{"path": pod.path, "spec": pod.spec, "containers": containers, "secrets": pod.secrets()}
	}
	return out
}

// check gives the violations.
func (p *podFacts) check() ([]violation, error) {
	if !p.checked {
		p.checked = true
		if p.unreadable = p.err; p.err == nil {
			p.violations, p.unreadable = violations(p.pods)
		}
	}
	return p.violations, p.unreadable
}

// violation is one failed check of the Pod Security Standards.
type violation struct{ level, check, detail, path string }

// evaluator holds the checks of the Kubernetes release that this server is built for.
var evaluator = sync.OnceValues(func() (psapolicy.Evaluator, error) {
	return psapolicy.NewEvaluator(psapolicy.DefaultChecks(), nil)
})

// violations are the failed checks of all pods: level "baseline" for what the
// baseline standard forbids, "restricted" for what only the restricted one does
// (Kubernetes, Pod Security Standards).
func violations(pods []podSpec) ([]violation, error) {
	checks, err := evaluator()
	if err != nil {
		return nil, err
	}
	var out []violation
	for _, p := range pods {
		var spec corev1.PodSpec
		var meta metav1.ObjectMeta
		convert := runtime.DefaultUnstructuredConverter.FromUnstructured
		if convert(p.spec, &spec) != nil || p.meta != nil && convert(p.meta, &meta) != nil {
			return nil, fmt.Errorf(notAPod+"%s looks like a pod and cannot be read as one", p.path)
		}
		baseline := map[string]bool{}
		for _, level := range []psa.Level{psa.LevelBaseline, psa.LevelRestricted} {
			for _, result := range checks.EvaluatePod(psa.LevelVersion{Level: level, Version: psa.LatestVersion()}, &meta, &spec) {
				if result.Allowed || baseline[result.ForbiddenReason] {
					continue
				}
				if level == psa.LevelBaseline {
					baseline[result.ForbiddenReason] = true
				}
				out = append(out, violation{string(level), result.ForbiddenReason, result.ForbiddenDetail, p.path})
			}
		}
	}
	return out, nil
}

func violationValues(all []violation) []any {
	out := make([]any, len(all))
	for i, v := range all {
		out[i] = map[string]any{"level": v.level, "check": v.check, "detail": v.detail, "path": v.path}
	}
	return out
}
