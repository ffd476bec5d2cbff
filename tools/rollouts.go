package tools

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	kjson "sigs.k8s.io/json"

	"countersign/action"
	"countersign/audit"
)

type rolloutStatusInput struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

func getRolloutStatus() *Tool {
	scopes := scopesOf(action.Get, rollouts...)
	return define(Tool{
		Name:        "get_rollout_status",
		Title:       "Get the status of a rollout",
		Description: "Says whether a rollout is over and what it waits for.",
		Scopes:      scopes,
		Reads:       scopes,
	}, func(s *jsonschema.Schema) {
		oneOf(s, "kind", rollouts...)
	}, func(ctx context.Context, r Reader, cluster string, in rolloutStatusInput) (Call, error) {
		resource := workloads[in.Kind]
		body, err := readOne(ctx, r, cluster, resource, in.Namespace, in.Name)
		if err != nil {
			return Call{}, err
		}
		var object map[string]any
		if err := kjson.UnmarshalCaseSensitivePreserveInts(body, &object); err != nil {
			return Call{}, fmt.Errorf("reading the %s: %w", resource.Kind, err)
		}
		a := action.Action{Cluster: cluster, Verb: action.Get, Resource: resource, Namespace: in.Namespace, Name: in.Name}
		text, done, err := r.Kubectl(ctx, cluster).RolloutStatus(a, object)
		var argument *ArgumentError
		switch {
		case errors.As(err, &argument): // such as a rollout over its deadline: that is its status
			text = rolloutFailed(err.Error())
		case err != nil:
			return Call{}, err
		case done:
			text = "The rollout is over: " + text
		default:
			text = "The rollout is not over: " + text + "\n" + whyNot
		}
		if spec, _ := object["spec"].(map[string]any); spec["paused"] == true {
			text += "\nIt is paused: nothing more happens until resume_rollout."
		}
		return Call{Answer: audit.MaskText(text)}, nil
	}, nil)
}

const whyNot = "diagnose_workload says whether something keeps it from going on."

// rolloutFailed tells what is wrong with the rollout from there being none to
// follow, which kubectl's code both says by an error.
func rolloutFailed(words string) string {
	switch {
	case strings.Contains(words, "progress deadline"):
		return "The rollout has failed: " + words + "\n" + whyNot
	case strings.Contains(words, "rollout status is only available"):
		return "There is no rollout to follow: with updateStrategy OnDelete a pod is replaced when somebody deletes it."
	}
	return "How far the rollout is cannot be told: " + words
}

type rolloutHistoryInput struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Revision  int64  `json:"revision,omitempty" jsonschema:"shows this one's pod template"`
}

func getRolloutHistory() *Tool {
	scopes := scopesOf(action.Get, rollouts...)
	return define(Tool{
		Name:        "get_rollout_history",
		Title:       "Get the history of a rollout",
		Description: "Lists the revisions of a workload.",
		Scopes:      scopes,
		Reads: append(scopesOf(action.Get, rollouts...),
			action.Scope{Verbs: []string{action.List}, Resource: "replicasets.apps"}, action.Scope{Verbs: []string{action.List}, Resource: "controllerrevisions.apps"}),
	}, func(s *jsonschema.Schema) {
		oneOf(s, "kind", rollouts...)
		between(s, "revision", 1, noMaximum)
	}, func(ctx context.Context, r Reader, cluster string, in rolloutHistoryInput) (Call, error) {
		a := action.Action{Cluster: cluster, Verb: action.Get, Resource: workloads[in.Kind], Namespace: in.Namespace, Name: in.Name}
		if err := checkTarget(a); err != nil {
			return Call{}, err
		}
		if in.Revision == 0 {
			return rolloutHistory(ctx, r, a)
		}
		text, err := r.Kubectl(ctx, cluster).RolloutHistory(a, in.Revision)
		var argument *ArgumentError
		if errors.As(err, &argument) {
			if all, err := r.Kubectl(ctx, cluster).RolloutHistory(a, 0); err == nil {
				return Call{}, BadArgument("%s %s has no revision %d: give revision one of %s", a.Resource.Kind, in.Name, in.Revision, strings.Join(revisions(all), ", "))
			}
		}
		return Call{Answer: cutEnd(audit.MaskText(text), "give revision")}, err
	}, nil)
}

// revision is what a ReplicaSet or a ControllerRevision keeps of an earlier template.
type revision struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Revision int64             `json:"revision"` // of a ControllerRevision
	Data     struct {
		Spec struct {
			Template podSpec `json:"template"`
		} `json:"spec"`
	} `json:"data"`
	Spec struct { // of a ReplicaSet
		Template podSpec `json:"template"`
	} `json:"spec"`
}

// The annotations by which a Deployment numbers its ReplicaSets, and by which
// people say why they made a revision.
const (
	revisionAnnotation = "deployment.kubernetes.io/revision"
	causeAnnotation    = "kubernetes.io/change-cause"
)

// rolloutHistory lists the revisions. kubectl's list of them has numbers and
// hardly anything else; what tells them apart is their images.
func rolloutHistory(ctx context.Context, r Reader, a action.Action) (Call, error) {
	body, err := readOne(ctx, r, a.Cluster, a.Resource, a.Namespace, a.Name)
	if err != nil {
		return Call{}, err
	}
	var owner struct {
		Metadata metav1.ObjectMeta `json:"metadata"`
		Spec     struct {
			Selector *metav1.LabelSelector `json:"selector"`
		} `json:"spec"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(body, &owner); err != nil {
		return Call{}, fmt.Errorf("reading the %s: %w", a.Resource.Kind, err)
	}
	selector, err := metav1.LabelSelectorAsSelector(owner.Spec.Selector)
	if err != nil {
		return Call{}, fmt.Errorf("reading the selector of the %s: %w", a.Resource.Kind, err)
	}
	of := action.Resource{Group: "apps", Version: "v1", Resource: "controllerrevisions", Kind: "ControllerRevision", Namespaced: true}
	if a.Resource == deployments {
		of = replicaSets
	}
	response, err := r.Read(ctx, action.Action{
		Cluster: a.Cluster, Verb: action.List, Resource: of, Namespace: a.Namespace, Options: action.Options{LabelSelector: selector.String()},
	})
	if err != nil {
		return Call{}, err
	}
	var list struct {
		Items []revision `json:"items"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(response.Body, &list); err != nil {
		return Call{}, fmt.Errorf("reading the revisions: %w", err)
	}
	mine := slices.DeleteFunc(list.Items, func(one revision) bool { return !metav1.IsControlledBy(&one.Metadata, &owner.Metadata) })
	return Call{Answer: audit.MaskText(historyText(mine, r.Now()))}, nil
}

func historyText(all []revision, now time.Time) string {
	for i := range all {
		one := &all[i]
		if number, err := strconv.ParseInt(one.Metadata.Annotations[revisionAnnotation], 10, 64); one.Revision == 0 && err == nil {
			one.Revision = number
		}
		if one.Data.Spec.Template.images() != "" {
			one.Spec.Template = one.Data.Spec.Template
		}
	}
	all = slices.DeleteFunc(all, func(one revision) bool { return one.Revision == 0 })
	if len(all) == 0 {
		return "No revisions found."
	}
	slices.SortFunc(all, func(a, b revision) int { return cmp.Compare(a.Revision, b.Revision) })
	var rows rows
	rows.add([]string{"REVISION", "AGE", "IMAGES", "CHANGE-CAUSE"})
	for i, one := range all {
		number := strconv.FormatInt(one.Revision, 10)
		if i == len(all)-1 { // going back to an earlier one makes it the newest
			number += " (current)"
		}
		cause := cmp.Or(one.Metadata.Annotations[causeAnnotation], "<none>")
		age := duration.HumanDuration(now.Sub(one.Metadata.CreationTimestamp.Time))
		if !rows.add([]string{number, age, cellText(one.Spec.Template.images()), cellText(cause)}) {
			break
		}
	}
	text, shown := rows.table()
	if shown < len(all) {
		text += fmt.Sprintf("The first %d of %d are shown.\n", shown, len(all))
	}
	return text
}

// revisions are the numbers that the lines of kubectl rollout history begin with.
func revisions(history string) []string {
	var found []string
	for line := range strings.Lines(history) {
		if fields := strings.Fields(line); len(fields) > 0 && strings.Trim(fields[0], "0123456789") == "" {
			found = append(found, fields[0])
		}
	}
	return found
}
