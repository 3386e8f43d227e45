/* Intrusive doubly linked list; not thread safe. A head is a list_node of its own. */
#ifndef UMBRA_BASE_LIST_H
#define UMBRA_BASE_LIST_H

#include <stdbool.h>

#include "base/util.h"

struct list_node {
    struct list_node *prev, *next;
};

static inline void list_init(struct list_node *head)
{
    head->prev = head->next = head;
}

static inline bool list_empty(const struct list_node *head)
{
    return head->next == head;
}

static inline void list_append(struct list_node *head, struct list_node *n)
{
    n->prev = head->prev;
    n->next = head;
    head->prev->next = n;
    head->prev = n;
}

static inline void list_remove(struct list_node *n)
{
    n->prev->next = n->next;
    n->next->prev = n->prev;
    n->prev = n->next = n;
}

#define list_entry(node, type, member) container_of(node, type, member)
#define list_first(head, type, member) list_entry((head)->next, type, member)

/* The current entry may be removed in the body. */
#define list_for_each(var, head, member)                                                   \
    for (__typeof__(var) var##_next_, var##_cur_ = list_entry((head)->next, __typeof__(*var), member); \
         (var = var##_cur_, var##_next_ = list_entry(var->member.next, __typeof__(*var), member),      \
         &var->member != (head));                                                          \
         var##_cur_ = var##_next_)

#endif
