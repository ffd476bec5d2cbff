package kube

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"countersign/action"
	"countersign/gate"
)

// CreateImmutable makes an immutable ConfigMap whose name begins with prefix; the
// API server chooses the rest. It takes the verb create on configmaps and no other.
//
// This is not an agent's request, so it does not go through the gate: nobody calls
// it, no policy decides it, and the log says what was anchored, not that it was
// tried. It is sent in the server's own name, also where agents are impersonated.
func (c *Clusters) CreateImmutable(ctx context.Context, clusterName, namespace, prefix string, labels, data map[string]string) error {
	one, err := c.get(clusterName)
	if err != nil {
		return err
	}
	immutable := true
	body, err := action.Canonical(corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{GenerateName: prefix, Labels: labels},
		Immutable:  &immutable,
		Data:       data,
	})
	if err != nil {
		return err
	}
	ctx = own(ctx)
	err = one.client.Post().AbsPath("/api/v1/namespaces", namespace, "configmaps").
		SetHeader("Content-Type", "application/json").Body(body).MaxRetries(0).Do(ctx).Error()
	return fault(ctx, err)
}

// MayErase tells which of the verbs on which resources that would take a namespace's
// ConfigMaps away the server's own credential has, such as "delete configmaps". A
// cluster that does not tell what its callers may do (SelfSubjectAccessReview) is
// taken to allow none of them.
func (c *Clusters) MayErase(ctx context.Context, clusterName, namespace string) ([]string, error) {
	one, err := c.get(clusterName)
	if err != nil {
		return nil, err
	}
	ctx = own(ctx)
	var may []string
	for _, a := range []authorizationv1.ResourceAttributes{
		{Verb: "delete", Resource: "configmaps", Namespace: namespace},
		{Verb: "deletecollection", Resource: "configmaps", Namespace: namespace},
		{Verb: "delete", Resource: "namespaces", Namespace: namespace, Name: namespace}, // a Namespace lies in itself
	} {
		body, err := action.Canonical(authorizationv1.SelfSubjectAccessReview{
			TypeMeta: metav1.TypeMeta{APIVersion: "authorization.k8s.io/v1", Kind: "SelfSubjectAccessReview"},
			Spec:     authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &a},
		})
		if err != nil {
			return nil, err
		}
		result := one.client.Post().AbsPath("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews").
			SetHeader("Content-Type", "application/json").Body(body).MaxRetries(0).Do(ctx)
		var refused *gate.APIError
		if err := fault(ctx, result.Error()); errors.As(err, &refused) && (refused.Code == http.StatusForbidden || refused.Code == http.StatusNotFound) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		var review authorizationv1.SelfSubjectAccessReview
		if raw, err := result.Raw(); err != nil || json.Unmarshal(raw, &review) != nil {
			return nil, errors.New("what answers is no API server")
		}
		if review.Status.Allowed {
			may = append(may, a.Verb+" "+a.Resource)
		}
	}
	return may, nil
}

// ConfigMaps calls f with the name and the data of each ConfigMap of a namespace
// that has the label, in the order of their names. It takes the verb list. Like
// CreateImmutable it is not for agents: auditors read with it what was anchored, with a
// credential of their own.
func (c *Clusters) ConfigMaps(ctx context.Context, clusterName, namespace, label string, f func(name string, data map[string]string) error) error {
	one, err := c.get(clusterName)
	if err != nil {
		return err
	}
	ctx = own(ctx)
	for from := ""; ; {
		result := one.reads.Get().AbsPath("/api/v1/namespaces", namespace, "configmaps").
			Param("labelSelector", label).Param("limit", "100").Param("continue", from).Do(ctx)
		if err := fault(ctx, result.Error()); err != nil {
			return err
		}
		var page corev1.ConfigMapList
		if raw, err := result.Raw(); err != nil || json.Unmarshal(raw, &page) != nil {
			return errors.New("what answers is no API server")
		}
		for _, item := range page.Items {
			if err := f(item.Name, item.Data); err != nil {
				return err
			}
		}
		if from = page.Continue; from == "" {
			return nil
		}
	}
}
