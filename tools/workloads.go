package tools

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	kjson "sigs.k8s.io/json"

	"countersign/action"
)

var (
	deployments  = action.Resource{Group: "apps", Version: "v1", Resource: "deployments", Kind: "Deployment", Namespaced: true}
	statefulSets = action.Resource{Group: "apps", Version: "v1", Resource: "statefulsets", Kind: "StatefulSet", Namespaced: true}
	daemonSets   = action.Resource{Group: "apps", Version: "v1", Resource: "daemonsets", Kind: "DaemonSet", Namespaced: true}
)

// workloads are the kinds that a tool names by a word.
var workloads = map[string]action.Resource{
	"deployment": deployments, "statefulset": statefulSets, "daemonset": daemonSets, "cronjob": cronJobs,
}

// kindGroups are the words for kinds by which tools know them, each with its API group.
var kindGroups = map[string]string{
	"deployment": "apps", "statefulset": "apps", "daemonset": "apps", "replicaset": "apps", "cronjob": "batch", "job": "batch", "pod": "",
}

var shortKinds = map[string]string{
	"deploy": "deployment", "sts": "statefulset", "ds": "daemonset", "rs": "replicaset", "cj": "cronjob", "po": "pod",
}

// workloadKind is the word for what people call a kind: "deployment" for
// "Deployment", "deploy", "deployments.apps". What it does not know stays as it is.
// Decode asks it about a kind argument that is one of some words, so no tool has to.
func workloadKind(given string) string {
	name, group, _ := strings.Cut(strings.ToLower(given), ".")
	word, short := shortKinds[name]
	if !short {
		word = strings.TrimSuffix(name, "s")
	}
	of, known := kindGroups[word]
	if !known || group != "" && strings.TrimPrefix(group, "v1.") != of {
		return given
	}
	return word
}

// rollouts are the kinds that have revisions.
var rollouts = []string{"deployment", "statefulset", "daemonset"}

// scopesOf are the scopes of one verb upon some workloads.
func scopesOf(verb string, kinds ...string) []action.Scope {
	scopes := make([]action.Scope, len(kinds))
	for i, kind := range kinds {
		scopes[i] = action.Scope{Verbs: []string{verb}, Resource: workloads[kind].GroupResource()}
	}
	return scopes
}

// readOne reads the object that a call is about.
func readOne(ctx context.Context, r Reader, cluster string, resource action.Resource, namespace, name string) ([]byte, error) {
	get := action.Action{Cluster: cluster, Verb: action.Get, Resource: resource, Namespace: namespace, Name: name}
	if err := checkTarget(get); err != nil {
		return nil, err
	}
	response, err := r.Read(ctx, get)
	return response.Body, err
}

// oneOf bounds an argument to some words.
func oneOf(s *jsonschema.Schema, argument string, words ...string) {
	values := make([]any, len(words))
	for i, word := range words {
		values[i] = word
	}
	s.Properties[argument].Enum = values
}

type scaleInput struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Replicas  int64  `json:"replicas"`
	Reason    string `json:"reason,omitempty" jsonschema:"why; approvers see it as your words"`
}

func scaleDeployment() *Tool {
	return scale(Tool{
		Name:        "scale_deployment",
		Title:       "Scale a Deployment",
		Description: "Sets how many replicas a Deployment has.",
	}, deployments)
}

func scaleStatefulSet() *Tool {
	return scale(Tool{
		Name:        "scale_statefulset",
		Title:       "Scale a StatefulSet",
		Description: "Sets how many replicas a StatefulSet has.",
	}, statefulSets)
}

func scale(t Tool, resource action.Resource) *Tool {
	t.Scopes = []action.Scope{{Verbs: []string{action.Patch}, Resource: resource.GroupResource(), Subresource: "scale"}}
	return define(t, func(s *jsonschema.Schema) {
		between(s, "replicas", 0, 10000)
		limitReason(s)
	}, func(_ context.Context, _ Reader, _ string, in scaleInput) (Call, error) {
		a := mergePatch(resource, in.Namespace, in.Name, map[string]any{"spec": map[string]any{"replicas": in.Replicas}})
		a.Subresource = "scale"
		return changeOne(a, in.Reason)
	}, renderChange("scaled"))
}

type rolloutInput struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Reason    string `json:"reason,omitempty" jsonschema:"why; approvers see it as your words"`
}

// restartedAt is the annotation by which kubectl rollout restart makes another revision.
const restartedAt = "kubectl.kubernetes.io/restartedAt"

func restartRollout() *Tool {
	const name = "restart_rollout"
	return define(Tool{
		Name:        name,
		Title:       "Restart a rollout",
		Description: "Replaces all pods of a workload step by step.",
		Scopes:      scopesOf(action.Patch, rollouts...),
		Reads:       scopesOf(action.Get, rollouts...),
	}, func(s *jsonschema.Schema) {
		oneOf(s, "kind", rollouts...)
		limitReason(s)
	}, func(ctx context.Context, r Reader, cluster string, in rolloutInput) (Call, error) {
		resource := workloads[in.Kind]
		if _, err := readUnpaused(ctx, r, cluster, resource, in.Namespace, in.Name); err != nil {
			return Call{}, err
		}
		annotations := map[string]any{restartedAt: r.Now().UTC().Format(time.RFC3339)}
		call, err := changeOne(mergePatch(resource, in.Namespace, in.Name, map[string]any{
			"spec": map[string]any{"template": map[string]any{"metadata": map[string]any{"annotations": annotations}}},
		}), in.Reason)
		call.Same = fmt.Sprintf("%s %s %s %s/%s", name, cluster, in.Kind, in.Namespace, in.Name)
		return call, err
	}, renderChange("restarted"))
}

// readUnpaused reads a workload whose rollouts are not paused. A change of the
// template of one that is paused would wait, and then not be what was meant.
func readUnpaused(ctx context.Context, r Reader, cluster string, resource action.Resource, namespace, name string) (map[string]any, error) {
	body, err := readOne(ctx, r, cluster, resource, namespace, name)
	if err != nil {
		return nil, err
	}
	var object map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(body, &object); err != nil {
		return nil, fmt.Errorf("reading the %s: %w", resource.Kind, err)
	}
	if spec, _ := object["spec"].(map[string]any); spec["paused"] == true {
		return nil, BadArgument("%s %s is paused: resume_rollout first", resource.Kind, name)
	}
	return object, nil
}

type undoRolloutInput struct {
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace"`
	Name       string `json:"name"`
	ToRevision int64  `json:"to_revision,omitempty" jsonschema:"default: the one before"`
	Reason     string `json:"reason,omitempty" jsonschema:"why; approvers see it as your words"`
}

func undoRollout() *Tool {
	return define(Tool{
		Name:        "undo_rollout",
		Title:       "Undo a rollout",
		Description: "Takes a workload back to an earlier revision.",
		Scopes:      scopesOf(action.Patch, rollouts...),
		Reads: append(scopesOf(action.Get, rollouts...),
			action.Scope{Verbs: []string{action.List}, Resource: "replicasets.apps"},
			action.Scope{Verbs: []string{action.List}, Resource: "controllerrevisions.apps"}),
	}, func(s *jsonschema.Schema) {
		oneOf(s, "kind", rollouts...)
		between(s, "to_revision", 1, noMaximum)
		limitReason(s)
	}, func(ctx context.Context, r Reader, cluster string, in undoRolloutInput) (Call, error) {
		resource := workloads[in.Kind]
		object, err := readUnpaused(ctx, r, cluster, resource, in.Namespace, in.Name)
		if err != nil {
			return Call{}, err
		}
		of := action.Action{Cluster: cluster, Resource: resource, Namespace: in.Namespace, Name: in.Name}
		patch, err := r.Kubectl(ctx, cluster).Undo(of, object, in.ToRevision)
		if err != nil {
			return Call{}, undoError(ctx, r, of, in.ToRevision, err)
		}
		if err := checkPatched(patch); err != nil { // a revision is an object that somebody can have written
			return Call{}, err
		}
		return changeOne(patch, in.Reason)
	}, renderRolledBack)
}

// renderRolledBack says which images are back: by them people know a revision.
func renderRolledBack(responses []Response) (string, error) {
	text, err := renderChange("rolled back")(responses)
	if err != nil {
		return "", err
	}
	var object struct {
		Spec struct {
			Template podSpec `json:"template"`
		} `json:"spec"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(responses[0].Body, &object); err != nil {
		return "", fmt.Errorf("reading the workload: %w", err)
	}
	if images := object.Spec.Template.images(); images != "" {
		text += " to " + images
	}
	return text, nil
}

// undoError says which revisions there are where the one that is asked for is gone.
func undoError(ctx context.Context, r Reader, of action.Action, revision int64, err error) error {
	var argument *ArgumentError
	if !errors.As(err, &argument) {
		return err
	}
	switch {
	case strings.Contains(argument.text, "unable to find specified revision"):
		history, err := r.Kubectl(ctx, of.Cluster).RolloutHistory(of, 0)
		if err != nil {
			return err
		}
		there := revisions(history)
		if len(there) == 0 {
			return BadArgument("%s %s has no revisions to go back to", of.Resource.Kind, of.Name)
		}
		return BadArgument("%s %s has no revision %d: give to_revision one of %s", of.Resource.Kind, of.Name, revision, strings.Join(there, ", "))
	case strings.Contains(argument.text, "no rollout history found"), strings.Contains(argument.text, "no last revision"):
		return BadArgument("%s %s has no earlier revision to go back to", of.Resource.Kind, of.Name)
	}
	return err
}

// namedInput is of a change that needs no more than an object's name.
type namedInput struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Reason    string `json:"reason,omitempty" jsonschema:"why; approvers see it as your words"`
}

func pauseRollout() *Tool {
	return setPaused(Tool{
		Name:        "pause_rollout",
		Title:       "Pause a rollout",
		Description: "Stops a Deployment from rolling out changes of its pods.",
	}, true, "paused")
}

func resumeRollout() *Tool {
	return setPaused(Tool{
		Name:        "resume_rollout",
		Title:       "Resume a rollout",
		Description: "Lets a paused Deployment roll out its changes.",
	}, false, "resumed")
}

func setPaused(t Tool, paused bool, done string) *Tool {
	t.Scopes = scopesOf(action.Patch, "deployment")
	return define(t, limitReason, func(_ context.Context, _ Reader, _ string, in namedInput) (Call, error) {
		body := map[string]any{"spec": map[string]any{"paused": paused}}
		return changeOne(mergePatch(deployments, in.Namespace, in.Name, body), in.Reason)
	}, renderChange(done))
}

type setImageInput struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Container string `json:"container,omitempty" jsonschema:"may be left out if there is one"`
	Image     string `json:"image"`
	Reason    string `json:"reason,omitempty" jsonschema:"why; approvers see it as your words"`
}

// maxImage bounds the name of an image, in characters.
const maxImage = 1000

func setImage() *Tool {
	kinds := append(rollouts[:len(rollouts):len(rollouts)], "cronjob")
	return define(Tool{
		Name:        "set_image",
		Title:       "Set an image",
		Description: "Sets the image of one container or init container of a workload.",
		Scopes:      scopesOf(action.Patch, kinds...),
		Reads:       scopesOf(action.Get, kinds...),
	}, func(s *jsonschema.Schema) {
		oneOf(s, "kind", kinds...)
		s.Properties["image"].MaxLength = jsonschema.Ptr(maxImage)
		limitReason(s)
	}, func(ctx context.Context, r Reader, cluster string, in setImageInput) (Call, error) {
		if in.Image == "" || strings.ContainsFunc(in.Image, func(c rune) bool { return c <= ' ' || c > '~' }) {
			return Call{}, BadArgument("image is empty or holds white space or characters outside ASCII: write it as registry.example/name:tag")
		}
		resource := workloads[in.Kind]
		body, err := readOne(ctx, r, cluster, resource, in.Namespace, in.Name)
		if err != nil {
			return Call{}, err
		}
		path, name, err := findContainer(resource, body, in.Container)
		if err != nil {
			return Call{}, err
		}
		return changeOne(action.Action{
			Verb: action.Patch, Resource: resource, Namespace: in.Namespace, Name: in.Name,
			Body: []any{ // the test keeps it from another container, should they have moved
				map[string]any{"op": "test", "path": path + "/name", "value": name},
				map[string]any{"op": "replace", "path": path + "/image", "value": in.Image},
			},
			Options: action.Options{PatchType: action.JSONPatch, FieldManager: FieldManager},
		}, in.Reason)
	}, renderImage)
}

// renderImage says which image the container has now: the request names both.
func renderImage(responses []Response) (string, error) {
	var container, image string
	operations, _ := responses[0].Action.Body.([]any)
	for _, operation := range operations {
		switch one, _ := operation.(map[string]any); one["op"] {
		case "test":
			container, _ = one["value"].(string)
		case "replace":
			image, _ = one["value"].(string)
		}
	}
	return renderChange(fmt.Sprintf("image of container %s set to %s", container, image))(responses)
}

// podSpec is the part of a pod template that names its containers.
type podSpec struct {
	Spec struct {
		Containers     []named `json:"containers"`
		InitContainers []named `json:"initContainers"`
	} `json:"spec"`
}

type named struct {
	Name  string `json:"name"`
	Image string `json:"image"`
}

// images are those of the containers, not of those that only start them.
func (p podSpec) images() string {
	var images []string
	for _, c := range p.Spec.Containers {
		images = append(images, c.Image)
	}
	return strings.Join(images, ", ")
}

// findContainer finds a container by its name, or the only one, and says where it
// stands in the object, as a JSON Pointer. Names are unique within a pod.
func findContainer(resource action.Resource, body []byte, name string) (path, found string, err error) {
	var object struct {
		Spec struct {
			Template    podSpec `json:"template"`
			JobTemplate struct {
				Spec struct {
					Template podSpec `json:"template"`
				} `json:"spec"`
			} `json:"jobTemplate"`
		} `json:"spec"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(body, &object); err != nil {
		return "", "", fmt.Errorf("reading the %s: %w", resource.Kind, err)
	}
	template, base := object.Spec.Template, "/spec/template/spec"
	if resource == cronJobs {
		template, base = object.Spec.JobTemplate.Spec.Template, "/spec/jobTemplate/spec/template/spec"
	}
	var names []string
	for i, c := range template.Spec.Containers {
		if c.Name == name || name == "" && len(template.Spec.Containers) == 1 {
			return fmt.Sprintf("%s/containers/%d", base, i), c.Name, nil
		}
		names = append(names, c.Name)
	}
	for i, c := range template.Spec.InitContainers {
		if c.Name == name {
			return fmt.Sprintf("%s/initContainers/%d", base, i), c.Name, nil
		}
		names = append(names, c.Name+" (init)")
	}
	if name == "" {
		return "", "", BadArgument("there are several containers: give container, one of %s", strings.Join(names, ", "))
	}
	return "", "", BadArgument("there is no container %.100q: give one of %s", name, strings.Join(names, ", "))
}
