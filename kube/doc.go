// Package kube sends Actions to the API servers with the credential that only
// the server holds, and asks them what an Action would do.
//
// It is the only room that imports client-go. It decides nothing: what is sent,
// when and whether is gate's business. Every request of an operation carries the
// Audit-ID that gate gives it and, where the cluster is to see them, the name of the
// principal; besides those the server only asks on its own behalf what a cluster
// serves (discovery), who and what it may be there, and for its tokens, and puts the
// log's checkpoints into ConfigMaps.
package kube
